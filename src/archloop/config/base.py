"""What every section of a configuration is: a frozen model that refuses what it does not know."""

from __future__ import annotations

from collections.abc import Mapping
from types import NoneType
from typing import Annotated, Any, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Seconds = Annotated[float, Field(gt=0, le=7 * 24 * 3600)]
Mebibytes = Annotated[int, Field(le=2**24)]


class Section(BaseModel):
    """Keys of one section; unknown ones and numbers without end are refused, and none changes."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _unset(cls, keys: Any) -> Any:
        """``"none"`` unsets a key that may be ``None``, for which TOML has no word."""
        if not isinstance(keys, Mapping):
            return keys
        may = {k for k in cls.model_fields if NoneType in cls._kinds_of(k)}
        return {k: None if v == "none" and k in may else v for k, v in keys.items()}

    @field_validator("*", mode="before")
    @classmethod
    def _no_number(cls, value: Any, info: ValidationInfo) -> Any:
        """``true`` is no 1."""
        kinds = cls._kinds_of(info.field_name or "")
        if isinstance(value, bool) and bool not in kinds and {int, float} & kinds:
            raise ValueError("a number, not true or false")
        return value

    @classmethod
    def _kinds_of(cls, field: str) -> set[Any]:
        annotation = cls.model_fields[field].annotation
        return {annotation, *get_args(annotation)}
