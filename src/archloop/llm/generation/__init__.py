"""Sampling completions from the LLM: a Protocol, one file per engine, one registry.

A new engine is a file with a class that fulfils :class:`Generator`, a line in the registry below
and its name in :class:`~archloop.config.GenerationConfig`. Engines are imported when built.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from archloop.config import GenerationConfig
from archloop.config.engines import VLLMConfig
from archloop.errors import MissingExtraError, UsageError
from archloop.llm.generation.generator import FinishReason, GeneratedText, Generator
from archloop.llm.spending import Remote

__all__ = [
    "CONTINUOUS",
    "EXTRAS",
    "SEPARATE",
    "GeneratedText",
    "Generator",
    "StoredText",
    "build_generator",
    "require_engine",
]

StoredText = tuple[str, int, FinishReason]
"""Text, number of sampled tokens and finish reason of a completion of an earlier run."""


SEPARATE = frozenset({"openai"})
"""Engines whose completions do not depend on what is sampled beside them, and cost money: only what
is missing is asked for again."""

CONTINUOUS = frozenset({"openvino", "vllm"})
"""Engines in which a request takes the place of one that ended, so that ``batch_size`` sequences
run at a time as long as requests are left."""

EXTRAS = {
    "openvino": ("openvino_genai", "openvino-genai"),
    "vllm": ("vllm", "'archloop[vllm]'"),
    "openai": ("openai", "'archloop[openai]'"),
}
"""Of each engine that may be absent: the module it needs, and what pip installs."""


@dataclass(frozen=True)
class _Build:
    config: GenerationConfig
    model_dir: Path
    adapter_dir: Path | None
    dtype: str
    stored: Mapping[int, StoredText] | None
    remote: Remote | None
    vllm: VLLMConfig


def build_generator(
    config: GenerationConfig,
    *,
    model_dir: Path,
    adapter_dir: Path | None,
    dtype: str,
    stored: Mapping[int, StoredText] | None = None,
    remote: Remote | None = None,
    vllm: VLLMConfig | None = None,
) -> Generator:
    """The configured engine, loaded and ready.

    Args:
        config: Engine and decoding settings.
        model_dir: The base LLM in Hugging Face layout: ``config.json``, safetensors, tokenizer
            with a chat template.
        adapter_dir: A PEFT adapter folder, or ``None`` for the base LLM alone.
        dtype: Computation type, ``bfloat16`` or ``float32``.
        stored: Completions of the cycle by index; required by ``replay``, unused by the others.
        remote: The server and the budget; required by ``openai``, which uses neither model nor
            adapter folder.
        vllm: Settings of ``vllm``; ``None``: the defaults.

    Raises:
        UsageError: The adapter does not fit the LLM or has no effect on it, the LLM has no chat
            template, or ``replay`` got nothing to repeat.
        MissingExtraError: The engine is not installed.
    """
    require_engine(config)
    build = _Build(config, model_dir, adapter_dir, dtype, stored, remote, vllm or VLLMConfig())
    return _ENGINES[config.engine](build)


def require_engine(config: GenerationConfig) -> None:
    """Refuse an engine that is not installed.

    Raises:
        MissingExtraError: Naming what to install.
    """
    module, install = EXTRAS.get(config.engine, ("archloop", ""))
    if importlib.util.find_spec(module) is None:
        raise MissingExtraError(
            f"generation.engine = {config.engine!r} needs: pip install {install}"
        )


def _transformers(build: _Build) -> Generator:
    from archloop.llm.generation.transformers_engine import TransformersGenerator

    return TransformersGenerator(build.config, build.model_dir, build.adapter_dir, build.dtype)


def _openvino(build: _Build) -> Generator:
    from archloop.llm.generation.openvino_engine import OpenVINOGenerator

    return OpenVINOGenerator(build.config, build.model_dir, build.adapter_dir, build.dtype)


def _vllm(build: _Build) -> Generator:
    from archloop.llm.generation.vllm_engine import VLLMGenerator

    return VLLMGenerator(build.config, build.vllm, build.model_dir, build.adapter_dir, build.dtype)


def _openai(build: _Build) -> Generator:
    from archloop.llm.generation.openai_engine import OpenAIGenerator

    if build.remote is None:
        raise UsageError("generation.engine = 'openai': no server was given")
    return OpenAIGenerator(build.config, build.remote)


def _replay(build: _Build) -> Generator:
    from archloop.llm.generation.replay import ReplayGenerator

    if build.stored is None:
        raise UsageError("generation.engine = 'replay': no stored completions were given")
    return ReplayGenerator(build.stored)


_ENGINES: dict[str, Callable[[_Build], Generator]] = {
    "transformers": _transformers,
    "openvino": _openvino,
    "vllm": _vllm,
    "openai": _openai,
    "replay": _replay,
}
