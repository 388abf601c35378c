"""The package as users install it: built, installed into an environment of its own, used there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


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


def call(installed: Path, *command: str, cwd: Path) -> str:
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
    assert done.returncode in (0, 1), done.stderr
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
    assert {"archloop/py.typed", "archloop/presets/paper.toml"} <= held
    assert any(name.endswith("licenses/LICENSE") for name in held)
    assert not any(name.startswith("tests") for name in held)


def test_the_installed_command_line_works_outside_the_source_tree(
    installed: Path, tmp_path: Path
) -> None:
    where = call(
        installed, "python", "-c", "import archloop; print(archloop.__file__)", cwd=tmp_path
    )
    assert where.startswith(str(installed.parent)), "the environment's own copy"
    assert "run" in call(installed, "archloop", "--help", cwd=tmp_path)
    lines = call(installed, "archloop", "doctor", "smoke", "--json", cwd=tmp_path).splitlines()
    checks = {check["name"]: check for check in map(json.loads, lines)}
    assert checks["Python"]["ok"]
    assert checks["task"]["detail"].startswith("Digits")


def test_the_installed_package_has_its_presets(installed: Path, tmp_path: Path) -> None:
    code = "from archloop.config import *; print([load_config(n).seed for n in preset_names()])"
    shown = json.loads(call(installed, "python", "-c", code, cwd=tmp_path))
    assert len(shown) == len(list((ROOT / "src" / "archloop" / "presets").glob("*.toml")))
