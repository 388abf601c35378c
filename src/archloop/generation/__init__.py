"""Sampling completions from the LLM: a Protocol, one file per engine, one registry.

A new engine is a file with a class that fulfils :class:`Generator`, a line in the registry below
and its name in :class:`~archloop.config.GenerationConfig`. Engines are imported when built.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from archloop.config import GenerationConfig
from archloop.errors import UsageError
from archloop.generation.generator import FinishReason, GeneratedText, Generator

__all__ = ["GeneratedText", "Generator", "StoredText", "build_generator"]

StoredText = tuple[str, int, FinishReason]
"""Text, number of sampled tokens and finish reason of a completion of an earlier run."""


@dataclass(frozen=True)
class _Build:
    config: GenerationConfig
    model_dir: Path
    adapter_dir: Path | None
    dtype: str
    stored: Mapping[int, StoredText] | None


def build_generator(
    config: GenerationConfig,
    *,
    model_dir: Path,
    adapter_dir: Path | None,
    dtype: str,
    stored: Mapping[int, StoredText] | None = None,
) -> Generator:
    """The configured engine, loaded and ready.

    Args:
        config: Engine and decoding settings.
        model_dir: The base LLM in Hugging Face layout: ``config.json``, safetensors, tokenizer
            with a chat template.
        adapter_dir: A PEFT adapter folder, or ``None`` for the base LLM alone.
        dtype: Computation type, ``bfloat16`` or ``float32``.
        stored: Completions of the cycle by index; required by ``replay``, unused by the others.

    Raises:
        UsageError: The adapter does not fit the LLM or has no effect on it, the LLM has no chat
            template, or ``replay`` got nothing to repeat.
        MissingExtraError: The engine is not installed.
    """
    return _ENGINES[config.engine](_Build(config, model_dir, adapter_dir, dtype, stored))


def _transformers(build: _Build) -> Generator:
    from archloop.generation.transformers_engine import TransformersGenerator

    return TransformersGenerator(build.config, build.model_dir, build.adapter_dir, build.dtype)


def _openvino(build: _Build) -> Generator:
    from archloop.generation.openvino_engine import OpenVINOGenerator

    return OpenVINOGenerator(build.config, build.model_dir, build.adapter_dir, build.dtype)


def _replay(build: _Build) -> Generator:
    from archloop.generation.replay import ReplayGenerator

    if build.stored is None:
        raise UsageError("generation.engine = 'replay': no stored completions were given")
    return ReplayGenerator(build.stored)


_ENGINES: dict[str, Callable[[_Build], Generator]] = {
    "transformers": _transformers,
    "openvino": _openvino,
    "replay": _replay,
}
