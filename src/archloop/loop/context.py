"""What every stage needs: configuration, paths, store, prompt, task, each made once."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from archloop.config import RunConfig, changed_keys, config_digest
from archloop.config.derived import derive_seed
from archloop.errors import ConfigError, UsageError
from archloop.files import write_text
from archloop.llm.models import adapter_mismatch, resolve_adapter, resolve_model
from archloop.machine.hardware import on_this_machine, resolved_precision, session
from archloop.progress import Observer
from archloop.search.prompts import PromptSubject, PromptTemplate
from archloop.store.run_dir import PINNED, SESSIONS, TASK_SIZE, RunDir
from archloop.store.store import Store
from archloop.tasks import load_task
from archloop.tasks.protocol import protocol_digest
from archloop.types import Message, TaskData


def task_prompt(config: RunConfig) -> list[Message]:
    """The prompt of a configuration; loads its task, whose data say shape and classes."""
    return _render(config, load_task(config.task, config.protocol))


def _render(config: RunConfig, task: TaskData) -> list[Message]:
    subject = PromptSubject(task.info.title, task.info.shape, task.info.classes)
    template = PromptTemplate.from_config(config.prompt)
    return template.render(subject, config.task.max_params)


@dataclass
class RunContext:
    """One run directory, opened for work."""

    config: RunConfig
    paths: RunDir
    store: Store
    observer: Observer

    @cached_property
    def template(self) -> PromptTemplate:
        """The run's prompt template."""
        return PromptTemplate.from_config(self.config.prompt)

    @cached_property
    def task(self) -> TaskData:
        """The images, loaded once."""
        return load_task(self.config.task, self.config.protocol)

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
    def prompt(self) -> list[Message]:
        """The one prompt of this run."""
        return _render(self.config, self.task)

    def seed(self, *parts: int | str) -> int:
        """A seed derived from the run's."""
        return derive_seed(self.config.seed, *parts)

    @property
    def has_begun(self) -> bool:
        """Whether anything was made with the configuration, which may change until then."""
        return _has_begun(self.paths, self.store)

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
        size = {"shape": list(self.input_shape), "classes": self.task.info.classes}
        self.store.set_meta(TASK_SIZE, size)
        self.store.set_meta(SESSIONS, [*self.store.get_meta(SESSIONS, []), session()])

    def _about_precision(self) -> str:
        """What another machine may change of the protocol; a run goes on where it is the same."""
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
        else:
            _check_warm_start(config)
        if config != before:
            _write_config(paths, config)
    except BaseException:
        store.close()
        raise
    return RunContext(config, paths, store, observer)


def _has_begun(paths: RunDir, store: Store) -> bool:
    """The first corpus is the first thing that a run makes; a copy of one may lack it."""
    return paths.corpus(1).is_file() or bool(store.completions(1))


def _refuse_another_run(
    paths: RunDir, store: Store, before: RunConfig | None, config: RunConfig
) -> None:
    """Refuse to go on with another configuration, or without a part of the run."""
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


def _check_warm_start(config: RunConfig) -> None:
    """Refuse an adapter that a later cycle could not go on from, before the run has begun."""
    finetune, warm = config.finetune, config.llm.warm_start
    if warm is None or not finetune.enabled or finetune.init != "previous":
        return
    if mismatch := adapter_mismatch(resolve_adapter(warm), finetune):
        raise ConfigError(mismatch)


def _write_config(paths: RunDir, config: RunConfig) -> None:
    write_text(paths.config, json.dumps(config.model_dump(mode="json"), indent=2) + "\n")
