"""The package as users install it: built, installed into an environment of its own, used there."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

import archloop
from archloop.cli import cli
from conftest import network

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that nothing built before gets in and nothing is left behind."""
    folder = tmp_path_factory.mktemp("build")
    source = folder / "source"
    ignore = shutil.ignore_patterns("*.egg-info", "__pycache__")
    shutil.copytree(ROOT / "src", source / "src", ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--wheel-dir", folder, source], check=True)
    (found,) = folder.glob("archloop-*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ``bin`` folder of an environment with the wheel, which sees this one's dependencies."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin" / "python"
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    subprocess.run([*command, "--no-deps", "--no-index", str(wheel)], check=True)
    (site,) = (folder / "lib").glob("python*/site-packages")
    # A plain path: the .pth files in it, which point to the source tree, are not followed.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin"


def call(installed: Path, *command: str, cwd: Path, codes: tuple[int, ...] = (0,)) -> str:
    """Output of a command of the environment, far from the source tree."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "ARCHLOOP_"))}
    done = subprocess.run(
        [str(installed / command[0]), *command[1:]],
        cwd=cwd,
        env=env | {"HF_HUB_OFFLINE": "1", "ARCHLOOP_CACHE": str(cwd / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in codes, done.stderr
    return done.stdout


def test_the_wheel_holds_every_file_of_the_package(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
    package = ROOT / "src" / "archloop"
    tracked = {
        path.relative_to(package.parent).as_posix()
        for path in package.rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert tracked <= held
    assert {"archloop/py.typed", "archloop/config/presets/paper.toml"} <= held
    assert any(name.endswith("licenses/LICENSE") for name in held)
    assert not any(name.startswith("tests") for name in held)


def test_the_installed_command_line_works_outside_the_source_tree(
    installed: Path, tmp_path: Path
) -> None:
    where = call(
        installed, "python", "-c", "import archloop; print(archloop.__file__)", cwd=tmp_path
    )
    assert where.startswith(str(installed.parent)), "the environment's own copy"
    shown = call(installed, "archloop", "--help", cwd=tmp_path)
    _, _, commands = shown.partition("\nCommands:\n")
    names = [
        line.split()[0]
        for line in commands.splitlines()
        if line.startswith("  ") and line[2:3].strip()
    ]
    assert names == sorted(cli.commands)
    assert (
        call(installed, "archloop", "--version", cwd=tmp_path).split()[-1] == archloop.__version__
    )
    # 1: this machine may lack something, such as the LLM in a new cache.
    told = call(installed, "archloop", "doctor", "smoke", "--json", cwd=tmp_path, codes=(0, 1))
    checks = {check["name"]: check for check in map(json.loads, told.splitlines())}
    for name in ("Python", "package peft", "warm-start adapter", "task", "disk, cache"):
        assert checks[name]["ok"], name
    assert checks["Python"]["detail"] == platform.python_version()
    assert checks["warm-start adapter"]["detail"] == "smollm2-135m-lemur"
    assert checks["task"]["detail"].startswith("Digits")


def test_the_installed_command_line_evaluates_a_network(installed: Path, tmp_path: Path) -> None:
    """With the sandbox of the wheel: its processes import the copy that was installed."""
    (tmp_path / "good.py").write_text(network())
    (tmp_path / "bad.py").write_text(network(forward="x = x[:, :0]"))
    command = ("archloop", "evaluate", "good.py", "bad.py", "--task", "digits", "--json")
    rows = [json.loads(line) for line in call(installed, *command, cwd=tmp_path).splitlines()]
    found = {row["file"]: row for row in rows}
    assert found["good.py"]["outcome"] == "valid"
    assert found["good.py"]["first_epoch_accuracy"] > 0.2
    assert found["bad.py"]["outcome"] == "forward_error"


def test_the_installed_package_has_its_presets(installed: Path, tmp_path: Path) -> None:
    code = (
        "import json; from archloop.config import load_config, preset_names; "
        "print(json.dumps({n: load_config(n).model_dump(mode='json') for n in preset_names()}))"
    )
    shown = json.loads(call(installed, "python", "-c", code, cwd=tmp_path))
    presets = ROOT / "src" / "archloop" / "config" / "presets"
    assert set(shown) == {p.stem for p in presets.glob("*.toml")}
    for name, tree in shown.items():
        assert tree == archloop.load_config(name).model_dump(mode="json")
