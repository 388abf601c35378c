"""The configurations in the README load, and pass the checks of a run with real folders."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image

from archloop.config import load_config
from archloop.doctor.preflight import preflight
from conftest import network
from tiny_llm import random_llm

README = (Path(__file__).parents[2] / "README.md").read_text()
EXAMPLES = dict(re.findall(r"```toml\n# (\S+\.toml)\n(.*?)```", README, re.DOTALL))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What the examples call ``path/to/...``."""
    root = tmp_path_factory.mktemp("own")
    for label in ("cat", "dog"):
        (root / "images" / label).mkdir(parents=True)
        Image.new("RGB", (40, 40)).save(root / "images" / label / "0.png")
    (root / "networks").mkdir()
    (root / "networks" / "net.py").write_text(network())
    llm = random_llm(root / "llm")
    return {"images": root / "images", "networks": root / "networks", "llm": llm}


def test_the_examples_are_of_images_of_an_llm_and_of_both() -> None:
    assert list(EXAMPLES) == ["images.toml", "llm.toml", "my.toml"]
    for name in ("images.toml", "llm.toml"):
        assert f"archloop run {name} --run-dir" in README


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_passes_the_checks_of_a_run(
    name: str, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARCHLOOP_CACHE", str(tmp_path / "cache"))
    text = re.sub(r"path/to/(\w+)", lambda found: str(folders[found[1]]), EXAMPLES[name])
    (tmp_path / name).write_text(text)
    config = load_config(tmp_path / name)
    preflight(config)
    assert (config.task.name == "cifar10") is (name == "llm.toml")
    assert (config.llm.model == "smollm2-135m") is (name == "images.toml")
    assert (config.llm.warm_start is None) is (name != "images.toml")
