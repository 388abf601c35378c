"""What every stage needs: configuration, paths, store, prompt, task, each made once."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Self

from archloop.config import RunConfig, changed_keys, config_digest
from archloop.config.derived import derive_seed
from archloop.doctor.preflight import check_llm, loads_llm, preflight
from archloop.errors import ConfigError, UsageError
from archloop.evaluation.executor import Executor, build_executor
from archloop.files import write_text
from archloop.llm.finetuning.learner import Learner, build_learner
from archloop.llm.generation.session import GeneratorSession
from archloop.llm.models import read_settings, resolve_model
from archloop.loop.watch import Watch
from archloop.machine.footprint import LLMShape, finetune_bytes
from archloop.machine.hardware import (
    free_memory,
    nvidia_gpus,
    on_this_machine,
    resolved_precision,
)
from archloop.machine.session import session
from archloop.progress import Observer
from archloop.sandbox import new_key, require
from archloop.search.prompts import PromptSubject, PromptTemplate
from archloop.search.strategy import Strategy, build_strategy
from archloop.store.run_dir import FINISHED, MEASURING_KEY, PINNED, SESSIONS, TASK_SIZE, RunDir
from archloop.store.store import Store
from archloop.tasks import load_task
from archloop.tasks.protocol import protocol_digest
from archloop.types import Message, Request, TaskData

_LIBRARY_BYTES = 2**30
"""What torch and the libraries around it take in a process of their own."""

NO_ADAPTER = "none"
"""Stands for the adapter's name in a run without adapters."""


def _subject(task: TaskData) -> PromptSubject:
    return PromptSubject(task.info.title, task.info.shape, task.info.classes)


def task_subject(config: RunConfig) -> PromptSubject:
    """What a prompt says about the task of a configuration; loads it, as its data say so."""
    return _subject(load_task(config.task, config.protocol))


@dataclass
class RunContext:
    """One run directory, opened for work, with what lives as long as the run does."""

    config: RunConfig
    paths: RunDir
    store: Store
    observer: Observer
    extends: bool = False
    """Whether more cycles are planned than when the run was last opened."""

    @cached_property
    def watch(self) -> Watch:
        """Told what is going on; it tells the observer."""
        config = self.config
        adapts = self.has_adapter and config.finetune.enabled
        return Watch(
            self.observer,
            self.store,
            self.paths.progress,
            cycles=config.loop.cycles,
            learns=adapts and self.strategy.learns,
            last=adapts and config.loop.final_finetune,
        )

    @cached_property
    def strategy(self) -> Strategy:
        """What to ask for, accept and learn from."""
        return build_strategy(self.config)

    @cached_property
    def template(self) -> PromptTemplate:
        """The run's prompt template."""
        return PromptTemplate.from_config(self.config.prompt)

    @cached_property
    def task(self) -> TaskData:
        """The images, loaded once."""
        return load_task(self.config.task, self.config.protocol)

    @property
    def subject(self) -> PromptSubject:
        """What a prompt says about the task."""
        return _subject(self.task)

    @cached_property
    def prompt(self) -> list[Message]:
        """The run's prompt for its task, from which a strategy makes its own."""
        return self.template.render(self.subject, self.config.task.max_params)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """What networks are trained on and graphs are traced at."""
        return self.config.protocol.input_shape(self.task.info.shape)

    @cached_property
    def model_dir(self) -> Path:
        """The base LLM's folder."""
        return resolve_model(self.config.llm)

    @cached_property
    def protocol(self) -> str:
        """The protocol hash of this run."""
        return protocol_digest(self.config, self.task)

    @cached_property
    def executor(self) -> Executor:
        """Evaluates candidates; its fork servers live as long as the run."""
        config = self.config
        return build_executor(config.sandbox, self.task, config.protocol, self.measuring_key)

    @property
    def measuring_key(self) -> bytes:
        """The run's secret, drawn when it begins: nobody can predict how a network is measured."""
        if (stored := self.store.get_meta(MEASURING_KEY)) is None:
            stored = new_key().hex()
            self.store.set_meta(MEASURING_KEY, stored)
        return bytes.fromhex(stored)

    @cached_property
    def generator(self) -> GeneratorSession:
        """The process that writes; it lives as long as the run, if memory allows."""
        traits = self.config.engine_traits
        model_dir = self.model_dir if traits.loads_llm else None
        # Of networks that are scaled (protocol.resize), what they get counts.
        subject = replace(self.subject, shape=self.input_shape)
        return GeneratorSession(self.config, model_dir, subject=subject)

    def seed(self, *parts: int | str) -> int:
        """A seed derived from the run's."""
        return derive_seed(self.config.seed, *parts)

    @property
    def has_begun(self) -> bool:
        """Whether anything was made with the configuration, which may change until then."""
        return _has_begun(self.paths, self.store)

    @property
    def is_finished(self) -> bool:
        """Whether the run ended as planned."""
        return bool(self.store.get_meta(FINISHED))

    @cached_property
    def learner(self) -> Learner:
        """What makes an adapter of lessons."""
        return build_learner(self.config, self.model_dir)

    @property
    def has_adapter(self) -> bool:
        """Whether each cycle of the run has an adapter.

        It has none where the LLM is elsewhere, where nothing loads it or learns, and where an LLM
        without a warm start is frozen.
        """
        config, traits = self.config, self.config.engine_traits
        if not traits.takes_adapters:
            return False
        learns = self.strategy.learns and (config.finetune.enabled or traits.loads_llm)
        return learns or config.llm.warm_start is not None

    def requests(self, cycle: int) -> list[Request]:
        """The requests of a cycle, stored when they are first asked for."""
        from archloop.loop.corpora import history_of

        stored = self.store.requests(cycle)
        if stored:
            return stored
        asked = self.strategy.ask(history_of(self), cycle, self.config.loop.completions)
        self.store.add_requests(asked)
        return asked

    def make_room(self) -> None:
        """End the generator's process before a fine-tune that needs its memory.

        On a GPU it always does. On a CPU the LLM stays loaded where the fine-tune fits beside it
        without gradient checkpointing, so that keeping it never slows the fine-tune down.
        """
        if "generator" in self.__dict__ and not self._fits_beside_the_generator():
            self.generator.release()

    def _fits_beside_the_generator(self) -> bool:
        if nvidia_gpus():
            return False
        config = self.config
        shape = LLMShape.from_config(read_settings(self.model_dir / "config.json"))
        if shape is None:
            return False
        spared = config.finetune.gradient_checkpointing is True
        need = finetune_bytes(shape, config.finetune, config.llm.dtype, checkpointing=spared)
        return need + _LIBRARY_BYTES < free_memory()

    def owed_cycles(self) -> list[int]:
        """The cycles that are planned and not committed yet."""
        committed = {stats.cycle for stats in self.store.cycles()}
        return [c for c in range(1, self.config.loop.cycles + 1) if c not in committed]

    def begin(self) -> None:
        """Check what later steps need, pin what must not change, and say what is done already.

        Raises:
            UsageError: Naming the key that is wrong, or what is missing.
            AssetError: The LLM is not here and cannot be downloaded.
        """
        # Found out now: the sandbox is first needed when a fine-tune and a batch are done.
        require(self.config.sandbox.isolation)
        committed = self.config.loop.cycles - len(self.owed_cycles())
        # The warm start is copied once; later cycles have adapters of their own.
        has_first_adapter = bool(self.store.cycles()) or self.paths.adapter(1).is_dir()
        preflight(
            self.config,
            begun=self.has_begun,
            has_first_adapter=has_first_adapter,
            has_adapter=self.has_adapter,
        )
        if not self.paths.config.is_file() or self.paths.read_config() != self.config:
            _write_config(self.paths, self.config)
        if loads_llm(self.config):
            # Downloaded now, so that a run does not stop after its first steps.
            warm = self.has_adapter and not has_first_adapter
            check_llm(self.config, self.model_dir, warm_start=warm)
        if self.has_begun:
            planned = self.config.loop.cycles
            self.watch.message(f"resuming: {committed} of {planned} cycles are done")
        if self.is_finished:  # it is extended
            self.store.set_meta(FINISHED, None)
        self.pin()
        if self.task.info.summary:
            self.observer.message(self.task.info.summary)

    def close(self, error: BaseException | None = None) -> None:
        """End the processes of the run and close its store."""
        kind, trace = (None, None) if error is None else (type(error), error.__traceback__)
        try:
            if "generator" in self.__dict__:
                self.generator.close()
        finally:
            try:
                if "executor" in self.__dict__:
                    self.executor.__exit__(kind, error, trace)
            finally:
                self.store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close(error)

    def pin(self) -> None:
        """Keep what must not change during the run, and refuse the run if it has.

        Raises:
            ConfigError: Naming what differs from the start of the run.
        """
        pinned = {
            "prompt": self.template.digest,
            "decoding": config_digest(self.config.generation),
            "protocol": self.protocol,
            "task": self.task.info.name,
        }
        before = self.store.get_meta(PINNED)
        if before is None or not self.has_begun:
            self.store.set_meta(PINNED, pinned)
        elif before != pinned:
            names = ", ".join(k for k in pinned if before.get(k) != pinned[k])
            why = self._about_precision() if before.get("protocol") != self.protocol else ""
            raise ConfigError(f"{self.paths.root}: changed since the run began: {names}{why}")
        _ = self.measuring_key
        size = {"shape": list(self.input_shape), "classes": self.task.info.classes}
        self.store.set_meta(TASK_SIZE, size)
        self.store.set_meta(SESSIONS, [*self.store.get_meta(SESSIONS, []), session()])

    def _about_precision(self) -> str:
        """What differs between machines in the protocol; a run is resumed where it is the same."""
        wanted = self.config.protocol.precision
        if wanted != "auto":
            return ""
        return f" (protocol.precision = 'auto' is {resolved_precision(wanted)!r} on this machine)"


def open_context(config: RunConfig | None, root: Path, observer: Observer) -> RunContext:
    """Open a run directory, new or begun, for a configuration; the caller holds its lock.

    Args:
        config: ``None``: the one the run began with.
        root: The run directory.
        observer: Told what is going on.

    Raises:
        ConfigError: The run began with another configuration; the message names the changed keys.
        UsageError: Part of a run that has begun is missing.
    """
    paths = RunDir(root)
    before = paths.read_config() if paths.config.is_file() else None
    config = on_this_machine(config) if config else before
    if config is None:
        raise ConfigError(f"{root}: no run here yet; name a configuration")
    store = Store(paths.database)
    try:
        if _has_begun(paths, store):
            _refuse_another_run(paths, store, before, config)
    except BaseException:
        store.close()
        raise
    extends = before is not None and config.loop.cycles > before.loop.cycles
    return RunContext(config, paths, store, observer, extends)


def _has_begun(paths: RunDir, store: Store) -> bool:
    """The first corpus is the first thing that a run makes; a copy of one may lack it."""
    return paths.corpus(1).is_file() or bool(store.completions(1))


def _refuse_another_run(
    paths: RunDir, store: Store, before: RunConfig | None, config: RunConfig
) -> None:
    """Refuse to resume with another configuration, or without a part of the run."""
    if before is None:
        missing = paths.config
    elif not store.completions(1) and store.get_meta(PINNED) is None:
        missing = paths.database
    elif changes := changed_keys(before, config):
        raise ConfigError(
            f"{paths.root}: the run began with another configuration; changed: {'; '.join(changes)}"
        )
    else:
        return
    raise UsageError(
        f"{missing}: missing or empty, though the run has begun; put it back, or give another "
        "--run-dir to a new run"
    )


def _write_config(paths: RunDir, config: RunConfig) -> None:
    write_text(paths.config, json.dumps(config.model_dump(mode="json"), indent=2) + "\n")
