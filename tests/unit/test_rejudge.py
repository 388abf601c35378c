from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from archloop.config import load_config
from archloop.rejudge import rejudge
from archloop.run_dir import RunDir
from archloop.store import Store
from archloop.types import Completion


def test_a_run_without_a_committed_cycle_has_nothing_to_judge_again(tmp_path: Path) -> None:
    paths = RunDir(tmp_path / "run")
    paths.root.mkdir()
    config = load_config("smoke")
    paths.config.write_text(config.model_dump_json(), "utf-8")
    with Store(paths.database) as store:
        store.add_completions([Completion(1, 0, "text", 5, 3, "stop")])
    assert list(rejudge(paths.root, config)) == []
    command = [sys.executable, "-P", "-m", "archloop", "novelty", "--rejudge", str(paths.root)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "0 outcomes differ; accepted 0 -> 0\n"
