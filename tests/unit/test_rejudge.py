from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from archloop.config import load_config
from archloop.errors import UsageError
from archloop.loop.rejudge import rejudge
from archloop.store.run_dir import TASK_SIZE, RunDir
from archloop.store.store import Store
from made_runs import add_texts, make_run


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "1 outcomes differ; accepted 1 -> 0"),
        (("--set", "selection.min_accuracy=0.4"), "0 outcomes differ; accepted 1 -> 1"),
        (("--config", "paper"), "0 outcomes differ; accepted 1 -> 1"),
    ],
)
def test_a_run_is_judged_by_its_own_configuration_if_none_is_named(
    tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    config = load_config("paper", ["selection.min_accuracy=0.6"])
    root = make_run(tmp_path / "run", [([0.5], 2)], config)
    with Store(RunDir(root).database) as store:
        store.set_meta(TASK_SIZE, {"shape": [3, 32, 32], "classes": 10})
    assert judged_again(root, *arguments).stdout.splitlines()[-1] == said


def judged_again(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "archloop", "novelty", "--rejudge", str(root)]
    return subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)


def test_a_run_without_a_committed_cycle_has_nothing_to_judge_again(tmp_path: Path) -> None:
    paths = RunDir(tmp_path / "run")
    paths.root.mkdir()
    config = load_config("smoke")
    paths.config.write_text(config.model_dump_json(), "utf-8")
    with Store(paths.database) as store:
        add_texts(store, 1, ["text"])
    with pytest.raises(UsageError, match="no cycle is committed"):
        next(rejudge(paths.root, config))
    done = judged_again(paths.root)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"archloop: {paths.root}: no cycle is committed")
