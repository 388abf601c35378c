"""Another system than Linux is a line that says so, never a traceback."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import psutil  # noqa: F401 - looks at the system when it is imported
import pytest

from archloop.code.chat import render_code
from archloop.doctor.diagnose import _isolation
from archloop.errors import IsolationError, UsageError
from archloop.sandbox import Sandbox, available_isolation, why_not
from conftest import network
from made_runs import finished_run

ROOT = Path(__file__).parents[2]
ELSEWHERE = """
import sys
{before}
sys.platform, sys.argv = {platform!r}, ["archloop", *{arguments!r}]
{hidden}
{code}
"""
CLI = "from archloop.cli import main\nmain()"


def elsewhere(
    platform: str, arguments: list[str], cwd: Path, *, before: str = "", code: str = CLI
) -> subprocess.CompletedProcess[str]:
    """A process that takes itself to be on another system; Windows has no ``fcntl`` either."""
    hidden = ""
    if platform == "win32":
        hidden = "sys.modules['fcntl'] = sys.modules['resource'] = None"
    said = ELSEWHERE.format(
        before=before, platform=platform, arguments=arguments, hidden=hidden, code=code
    )
    return subprocess.run(
        [sys.executable, "-P", "-c", said], capture_output=True, text=True, cwd=cwd, check=False
    )


@pytest.mark.parametrize("arguments", [["status", "run"], ["evaluate", "."], ["run", "smoke"]])
def test_windows_is_told_of_wsl(arguments: list[str], tmp_path: Path) -> None:
    # What the command line imports is loaded first: it would look for Windows' own modules.
    done = elsewhere(
        "win32", arguments, tmp_path, before="import logging, signal, subprocess, click"
    )
    assert done.stderr == (
        "archloop: archloop does not run on Windows itself; use Linux in WSL2 (wsl --install) or "
        "in a Docker container\n"
    )
    assert (done.returncode, done.stdout) == (2, "")


@pytest.mark.parametrize("name", ["run", "evaluate"])
def test_windows_is_told_of_wsl_in_python_too(name: str, tmp_path: Path) -> None:
    said = "print(type(error).__name__, error)"
    code = f"import archloop\ntry:\n    archloop.{name}\nexcept Exception as error:\n    {said}"
    done = elsewhere("win32", [], tmp_path, code=code)
    assert done.stdout.startswith("UsageError archloop does not run on Windows itself")


NO_SANDBOX = (
    "sandbox.isolation: macOS has no sandbox for generated code; use Linux in a virtual machine or "
    "a Docker container"
)


def test_evaluation_on_macos_is_refused_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(network())
    # torch and others look at the system when they are imported; here they are those of Linux.
    before = "import numpy, psutil, sklearn.datasets, sqlalchemy, PIL.Image, rich.console, pydantic"
    done = elsewhere("darwin", ["evaluate", "net.py", "--task", "digits"], tmp_path, before=before)
    assert done.stderr.splitlines()[-1] == f"archloop: {NO_SANDBOX}"
    assert "Traceback" not in done.stderr
    assert (done.returncode, done.stdout) == (2, "")


def test_a_run_on_macos_is_refused_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import archloop

    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(IsolationError, match="macOS has no sandbox"):
        archloop.run("smoke", tmp_path / "run")
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.parametrize("platform", ["darwin", "freebsd14"])
def test_no_level_is_available_without_linux(
    platform: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from archloop.config import load_config
    from archloop.doctor.requirements import Machine

    config = load_config("smoke", ["sandbox.isolation=process"])
    machine = Machine.of(config, Path("runs"))
    monkeypatch.setattr(sys, "platform", platform)
    assert available_isolation() is None
    assert why_not("process") is not None
    with pytest.raises(UsageError, match="has no sandbox for generated code"):
        Sandbox(config.sandbox)
    (check,) = _isolation(machine)
    assert (check.ok, check.detail) == (False, "none is available")


@pytest.mark.parametrize("arguments", [["status", "run"], ["show", "run", "c01-0000"], ["cache"]])
def test_a_run_can_be_read_on_macos(arguments: list[str], tmp_path: Path) -> None:
    finished_run(tmp_path / "run", network())
    before = "import sqlalchemy, psutil, rich.console, pydantic, filelock"
    done = elsewhere("darwin", arguments, tmp_path, before=before)
    assert (done.returncode, done.stderr) == (0, "")


def test_files_are_compared_on_macos(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(network())
    row = '{"messages": [{"role": "system", "content": ""}, {"role": "user", "content": ""}, '
    row += '{"role": "assistant", "content": %s}]}'
    (tmp_path / "c.jsonl").write_text(row % json.dumps(render_code(network())) + "\n")
    before = "import numpy, pydantic, psutil, joblib, archloop.evaluation.compare"
    arguments = ["novelty", "net.py", "--against", "c.jsonl"]
    done = elsewhere("darwin", arguments, tmp_path, before=before)
    assert done.stdout.startswith("net.py: J_train 1.0000")
    assert (done.returncode, done.stderr) == (0, "")


def test_every_python_that_is_promised_can_read_the_source() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    promised = [c.rpartition(" ")[2] for c in project["classifiers"] if " :: 3." in c]
    assert promised == ["3.11", "3.12", "3.13"]
    assert project["requires-python"] == ">=3.11"
    for file in sorted((ROOT / "src").rglob("*.py")):
        ast.parse(file.read_text("utf-8"), feature_version=(3, 11))
