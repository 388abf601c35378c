"""The generation engines: what the rest of the program must know of each, and their own sections.

A new engine is one file with a class that fulfils
:class:`~archloop.llm.generation.generator.Generator`, and one line in :data:`ENGINES`. The sections
``[openai]`` and ``[vllm]`` are apart from the decoding, which is fixed for a run: where the LLM is
reached, what may be spent and how much memory is taken can change when a run is resumed.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from archloop.config.base import Seconds, Section
from archloop.errors import ConfigError

_OWN = {
    "max_completion_tokens",
    "max_tokens",
    "messages",
    "model",
    "n",
    "seed",
    "stream",
    "temperature",
    "top_k",
    "top_p",
}
"""Fields of a request that the caps, the decoding and the reading of answers rest on."""


_SECRET = re.compile(r"api_?key|authoriz|bearer|passw|secret|credential|(access|api)_?token", re.I)
"""Names of fields that hold secrets."""


def _names(value: Any) -> list[str]:
    """The names of all fields of a JSON value, however deep."""
    if isinstance(value, dict):
        return [*value, *(name for inner in value.values() for name in _names(inner))]
    return [name for inner in value for name in _names(inner)] if isinstance(value, list) else []


class OpenAIConfig(Section):
    """An OpenAI-compatible server, and what a run may spend there.

    ``llm.model`` is the name that it serves the LLM under.
    """

    base_url: str | None = None
    """Where its API begins, for example ``http://127.0.0.1:8000/v1``."""
    api_key_env: str | None = None
    """Name of the environment variable that holds the key; ``None``: the server asks for none."""
    limit_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """Under which name ``generation.max_new_tokens`` is sent; some hosted models know only the
    second, many servers only the first."""
    extra_body: dict[str, Any] = {}
    """Further fields of every request, as the server knows them; none that archloop sets itself."""
    concurrency: int = Field(8, ge=1, le=1024)
    """Requests under way at the same time."""
    requests_per_minute: float | None = Field(None, gt=0)
    """Requests are at least this far apart, retries included; ``None``: no limit."""
    timeout_seconds: Seconds = 600.0
    """How long one answer may take."""
    retries: int = Field(4, ge=0, le=100)
    """Further tries, with growing pauses or after what ``Retry-After`` says, when the server is
    busy, fails or does not answer."""
    input_price: float | None = Field(None, ge=0)
    """Per million prompt tokens, in whatever currency the caps are in."""
    output_price: float | None = Field(None, ge=0)
    """Per million sampled tokens."""
    cap_tokens: int | None = Field(None, ge=1)
    """Prompt and sampled tokens that the whole run may use; ``None``: no cap."""
    cap_cost: float | None = Field(None, gt=0)
    """What the whole run may cost; ``None``: no cap."""

    @property
    def has_prices(self) -> bool:
        """Whether costs can be worked out."""
        return self.input_price is not None and self.output_price is not None

    def api_key(self) -> str | None:
        """The key from the environment; ``None``: the server asks for none.

        Raises:
            ConfigError: The variable that should hold it is not set.
        """
        if self.api_key_env is None:
            return None
        key = os.environ.get(self.api_key_env, "").strip()
        if not key:
            raise ConfigError(f"openai.api_key_env: the variable {self.api_key_env} is not set")
        return key

    @field_validator("base_url")
    @classmethod
    def _is_url(cls, value: str | None) -> str | None:
        if value is None:
            return None
        parts = urlsplit(value)
        if parts.username or parts.password:
            raise ValueError("no user name or password here; see api_key_env")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("allowed: a URL such as http://127.0.0.1:8000/v1")
        if parts.query or parts.fragment:
            raise ValueError("only where the API begins, without ? and #; for a key api_key_env")
        return value

    @field_validator("api_key_env")
    @classmethod
    def _is_name(cls, value: str | None) -> str | None:
        # Keys of some hosts would do as names, but for the case of their letters.
        if value is not None and not re.fullmatch(r"[A-Z_][A-Z0-9_]*", value):
            raise ValueError("the name of an environment variable in capitals, not the key itself")
        return value

    @field_validator("extra_body")
    @classmethod
    def _leaves_ours(cls, value: dict[str, Any]) -> dict[str, Any]:
        if own := sorted(value.keys() & _OWN):
            raise ValueError(
                f"not {', '.join(own)}: archloop sets them itself, from [generation], llm.model, "
                "the prompt and the seed, one completion a request"
            )
        if secrets := [name for name in _names(value) if _SECRET.search(name)]:
            raise ValueError(
                f"not {', '.join(secrets)}: the configuration is kept with the run and in reports; "
                "a key belongs into the variable that api_key_env names"
            )
        return value

    @model_validator(mode="after")
    def _prices(self) -> OpenAIConfig:
        if (self.input_price is None) != (self.output_price is None):
            raise ValueError("input_price and output_price belong together")
        if self.cap_cost is not None and not self.has_prices:
            raise ValueError("cap_cost needs input_price and output_price")
        return self


class VLLMConfig(Section):
    """How vLLM uses the GPUs."""

    gpu_memory_utilization: float = Field(0.6, gt=0.0, le=1.0)
    """Share of each GPU's memory that vLLM takes; candidates train in the rest."""
    tensor_parallel_size: int = Field(1, ge=1, le=1024)
    """GPUs that the LLM is spread over."""


Batching = Literal["step", "continuous", "separate"]
"""``step``: a batch's sequences advance together until the last one ends; ``continuous``: a request
takes the place of one that ended, so that ``generation.batch_size`` sequences run at a time as long
as requests are left; ``separate``: completions do not depend on what is sampled beside them."""


@dataclass(frozen=True)
class EngineTraits:
    """What an engine is like, for all who do not sample themselves."""

    factory: str
    """``package.module:Class``; the class is called with an
    :class:`~archloop.llm.generation.EngineSetup`."""
    batching: Batching
    loads_llm: bool = True
    """It loads the LLM from a folder."""
    takes_adapters: bool = True
    """A run with it has adapters: it samples with them, or repeats a run that did."""
    local: bool = True
    """``False``: the LLM is on a server."""
    billed: bool = False
    """Every answer may cost money: what is spent is counted, and only what is missing is asked."""
    needs_gpu: bool = False
    """It does not run without a CUDA GPU."""
    loads_alone: bool = False
    """While it loads, nothing else may take or give back memory of the GPU."""
    gpu_share: str | None = None
    """Key of its section that holds the share of each GPU's memory that it takes, whatever it
    needs."""
    repeats: bool = False
    """It repeats a stored run, ``generation.replay_from``, with the fine-tunes if they are on."""
    selectable: bool = True
    """Whether ``generation.engine`` may name it; the others belong to a search of their own."""
    disk_copies: int = 1
    """Copies of the LLM's weights in the cache."""
    module: str | None = None
    """The module it needs, where that may be absent."""
    install: str = ""
    """What ``pip install`` gets that module by."""
    section: type[Section] | None = None
    """Its own section of the configuration, which has the engine's name."""


_HOME = "archloop.llm.generation"
ENGINES: dict[str, EngineTraits] = {
    "transformers": EngineTraits(
        f"{_HOME}.transformers_engine:TransformersGenerator",
        "step",
    ),
    "openvino": EngineTraits(
        f"{_HOME}.openvino_engine:OpenVINOGenerator",
        "continuous",
        disk_copies=2,
        module="openvino_genai",
        install="openvino-genai",
    ),
    "vllm": EngineTraits(
        f"{_HOME}.vllm_engine:VLLMGenerator",
        "continuous",
        needs_gpu=True,
        loads_alone=True,
        gpu_share="gpu_memory_utilization",
        module="vllm",
        install="'archloop[vllm]'",
        section=VLLMConfig,
    ),
    "openai": EngineTraits(
        f"{_HOME}.openai_engine:OpenAIGenerator",
        "separate",
        loads_llm=False,
        takes_adapters=False,
        local=False,
        billed=True,
        module="openai",
        install="'archloop[openai]'",
        section=OpenAIConfig,
    ),
    "replay": EngineTraits(
        f"{_HOME}.replay:ReplayGenerator",
        "step",
        loads_llm=False,
        repeats=True,
    ),
    "grammar": EngineTraits(
        f"{_HOME}.grammar_engine:GrammarGenerator",
        "step",
        loads_llm=False,
        takes_adapters=False,
        selectable=False,
    ),
}
"""Every engine by its name."""

FIXED = {"openai.limit_field", "openai.extra_body"}
"""Keys of these sections that decide what is sampled."""


def may_change(key: str) -> bool:
    """Whether a run may be resumed with another value of a dotted key."""
    section = key.partition(".")[0]
    has_section = section in ENGINES and ENGINES[section].section is not None
    return has_section and not any(key == f or key.startswith(f + ".") for f in FIXED)


def check_sections(engine: str, sections: dict[str, Section]) -> None:
    """Refuse keys of engines that are not used.

    An engine that repeats a stored run takes those of that run.

    Raises:
        ValueError: Naming one of them.
    """
    for name, section in sections.items():
        if engine == name or ENGINES[engine].repeats:
            continue
        unused = type(section)()
        for key in type(section).model_fields:
            if getattr(section, key) != getattr(unused, key):
                raise ValueError(f"{name}.{key}: only with generation.engine = {name!r}")
