from __future__ import annotations

from pathlib import Path

import pytest

from archloop.config import load_config
from archloop.errors import UsageError
from archloop.loop.context import RunContext
from archloop.loop.stages import adapter_of
from archloop.progress import Silent
from archloop.store.run_dir import RunDir
from archloop.store.store import Store


def context(root: Path, *overrides: str) -> RunContext:
    paths = RunDir(root)
    config = load_config("embedded", overrides)
    return RunContext(config, paths, Store(paths.database), Silent())


def test_checkpoints_left_beside_a_whole_adapter_are_removed(tmp_path: Path) -> None:
    run = context(tmp_path)
    adapter = run.paths.adapter(1)
    adapter.mkdir(parents=True)
    left = adapter.with_name(f"{adapter.name}.checkpoints")
    (left / "checkpoint-20").mkdir(parents=True)
    with run.store:
        assert adapter_of(run, 1, []) == adapter
    assert list(adapter.parent.iterdir()) == [adapter]


def test_a_missing_adapter_of_an_earlier_cycle_is_named(tmp_path: Path) -> None:
    run = context(tmp_path, "finetune.enabled=false")
    with run.store, pytest.raises(UsageError, match=r"cycle_01: no adapter_config\.json"):
        adapter_of(run, 2, [])
    assert list(run.paths.adapter(1).parent.iterdir()) == []
