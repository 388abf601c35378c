"""The hyperparameters as a network is given them: a dict that says what it has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class UnknownHyperparameterError(KeyError):
    """A network asked for a hyperparameter that it is not given."""

    def __str__(self) -> str:
        """The message as it is; ``KeyError`` would quote it."""
        return str(self.args[0])


class Hyperparameters(dict[str, Any]):
    """A dict whose missing keys are named beside those that are there.

    Args:
        given: Names and values.
        declared: The names that ``supported_hyperparameters()`` gives.
    """

    def __init__(self, given: Mapping[str, Any], declared: frozenset[str]) -> None:
        super().__init__(given)
        self._declared = declared

    def __missing__(self, name: object) -> Any:
        short = repr(name)[:60]
        declared = "names it, but" if name in self._declared else "does not name it, and"
        raise UnknownHyperparameterError(
            f"no hyperparameter {short}: supported_hyperparameters() {declared} given are only "
            f"{', '.join(sorted(self))}"
        )
