"""Sampling completions from the LLM: a Protocol, one file per engine.

A new engine is a file with a class that fulfils
:class:`~archloop.llm.generation.generator.Generator` and is made of an
:class:`~archloop.llm.generation.generator.EngineSetup`, and a line in
:data:`archloop.config.engines.ENGINES`. Engines are imported when built.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from archloop.config import RunConfig
from archloop.config.engines import ENGINES
from archloop.errors import MissingExtraError
from archloop.llm.generation.generator import EngineSetup, Generator, nobody
from archloop.llm.spending import Budget
from archloop.machine.hardware import resolved_dtype

if TYPE_CHECKING:
    from archloop.search.prompts import PromptSubject

__all__ = ["EngineSetup", "Generator", "build_generator", "require_engine"]


def build_generator(
    config: RunConfig,
    *,
    model_dir: Path | None = None,
    subject: PromptSubject | None = None,
    budget: Budget | None = None,
    tell: Callable[[int], None] = nobody,
) -> Generator:
    """The configured engine; :meth:`~archloop.llm.generation.generator.Generator.use` loads it.

    Args:
        config: The run's.
        model_dir: The base LLM in Hugging Face layout; ``None``: for engines that load none.
        subject: The task, for engines that are not told by a prompt.
        budget: What may be spent, for engines that cost money.
        tell: Called with the number of tokens sampled since the last call, by engines that see
            them before a completion is finished.

    Raises:
        UsageError: The LLM has no chat template, or the engine cannot run here.
        MissingExtraError: The engine is not installed.
    """
    require_engine(config.engine)
    traits = config.engine_traits
    module, _, name = traits.factory.partition(":")
    factory: Callable[[EngineSetup], Generator] = getattr(importlib.import_module(module), name)
    dtype = resolved_dtype(config.llm.dtype)
    return factory(EngineSetup(config, traits, dtype, model_dir, subject, budget, tell))


def require_engine(engine: str) -> None:
    """Refuse an engine that is not installed.

    Args:
        engine: Its name in :data:`archloop.config.engines.ENGINES`.

    Raises:
        MissingExtraError: Naming what to install.
    """
    traits = ENGINES[engine]
    if traits.module is not None and importlib.util.find_spec(traits.module) is None:
        raise MissingExtraError(
            f"generation.engine = {engine!r} needs: pip install {traits.install}"
        )
