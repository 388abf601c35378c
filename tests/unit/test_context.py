"""What lives as long as a run does."""

from __future__ import annotations

from pathlib import Path

from archloop.config import load_config
from archloop.loop.context import RunContext, open_context
from archloop.progress import Silent


def opened(root: Path) -> RunContext:
    root.mkdir(exist_ok=True)
    config = load_config("embedded", ["task.name=digits", "seeds.source=none"])
    return open_context(config, root, Silent())


def test_a_run_keeps_its_secret_and_another_has_another(tmp_path: Path) -> None:
    keys = []
    for root in ("one", "one", "two"):
        with opened(tmp_path / root) as run:
            keys.append(run.measuring_key)
    assert keys[0] == keys[1] != keys[2]
    assert len(keys[0]) == 32
