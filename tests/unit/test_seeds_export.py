"""Accepted networks on their way out: to our own source of seeds, and to LEMUR's reader."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from archloop.config import SeedsConfig, load_config
from archloop.corpus.seeds import open_source
from archloop.corpus.seeds.export import export_run
from archloop.errors import UsageError
from archloop.machine.downloads import LEMUR_WHEEL, cache_dir
from archloop.store.run_dir import PINNED, Run, RunDir
from archloop.store.store import Store
from archloop.types import CycleStats, Decision, NoveltyScores, Outcome, Verdict
from conftest import network
from made_runs import add_texts

CODE = network()
READ = """
import json
from ab.nn.util.db.Read import data
print(json.dumps(data(only_best_accuracy=True)))
"""


def finished_run(root: Path, *overrides: str) -> Path:
    """A run of two candidates, the first of them accepted."""
    paths = RunDir(root)
    paths.root.mkdir()
    paths.config.write_text(
        load_config("paper", ("protocol.augmentation=flip", *overrides)).model_dump_json()
    )
    with Store(paths.database) as store:
        add_texts(store, 1, ["t"] * 2)
        for i, accuracy in enumerate((0.5, 0.3)):
            store.add_verdict(
                1,
                i,
                verdict=Verdict(Outcome.VALID, None, 100, accuracy, 2.5),
                code=CODE,
                code_sha256=f"sha{i}",
                isolation="confined",
                protocol="p",
                training="contract",
            )
        ends = [Outcome.ACCEPTED, Outcome.BELOW_THRESHOLD]
        scores = NoveltyScores(0.5, False, 0.0, False, None)
        decided = [
            Decision(c.id, o, scores, 0) for c, o in zip(store.candidates(1), ends, strict=True)
        ]
        outcomes = {"accepted": 1, "below_threshold": 1}
        stats = CycleStats(1, 2, 2, 1, 0, 1, (0.5, 0.3), 0, "a", "s", outcomes)
        store.commit_cycle(stats, decided)
    return paths.root


def export(root: Path, out: Path, prefix: str = "arch") -> str:
    with Run.open(root) as run:
        (name,) = export_run(run, out, prefix)
    return name


def test_a_run_is_a_source(tmp_path: Path) -> None:
    root = finished_run(tmp_path / "demo")
    source = open_source(SeedsConfig(source="run", path=str(root)))
    found = [(n.name, n.family, n.code, n.accuracy) for n in source.networks()]
    assert found == [("demo-c01-0000", "demo", CODE, 0.5)]
    with pytest.raises(UsageError, match="no run here"):
        open_source(SeedsConfig(source="run", path=str(tmp_path)))


def test_an_exported_run_is_laid_out_as_lemur_is_and_is_a_source(tmp_path: Path) -> None:
    root, out = finished_run(tmp_path / "demo"), tmp_path / "new_lemur"
    name = export(root, out)
    for prefix in ("my_arch", "", "../x", "a/b", "."):
        with pytest.raises(UsageError, match="expected letters, digits and '-'"):
            export(root, tmp_path / "no" / "way", prefix)
    assert not (tmp_path / "no").exists()
    assert name == f"arch-{hashlib.md5(''.join(CODE.split()).encode()).hexdigest()}"
    assert (out / "nn" / f"{name}.py").read_text().strip() == CODE.strip()
    (file,) = out.rglob("*.json")
    assert file.relative_to(out).as_posix() == (
        f"train/img-classification_cifar-10_acc_{name}/1.json"
    )
    (trial,) = json.loads(file.read_text())
    assert list(trial) == sorted(trial)
    assert (trial["accuracy"], trial["duration"], trial["batch"]) == (0.5, 2_500_000_000, 64)
    again = list(open_source(SeedsConfig(source="lemur", path=str(out))).networks())
    assert [(n.name, n.accuracy) for n in again] == [(name, 0.5)]


def test_accepted_networks_of_a_published_run_come_out_of_its_database(tmp_path: Path) -> None:
    published = Path(__file__).parents[2] / "docs" / "runs" / "embedded-fp32"
    before = sorted(path.name for path in published.iterdir())
    with Run.open(published) as run:
        names = export_run(run, tmp_path)
        accepted = run.store.accepted()
        assert len(names) == len(set(names)) == sum(c.n_accepted for c in run.cycles()) == 225
    for name, candidate in zip(names, accepted, strict=True):
        code = (tmp_path / "nn" / f"{name}.py").read_text()
        assert code.strip() == (candidate.code or "").strip()
    assert sorted(path.name for path in published.iterdir()) == before, "the run is only read"


def test_the_data_set_is_the_one_in_use(tmp_path: Path) -> None:
    root = finished_run(tmp_path / "run", "task.name=auto")
    with Store(RunDir(root).database) as store:
        store.set_meta(PINNED, {"task": "cifar100"})
    name = export(root, tmp_path / "out")
    assert (tmp_path / "out" / "train" / f"img-classification_cifar-100_acc_{name}").is_dir()


@pytest.mark.parametrize(
    ("overrides", "name", "steps"),
    [
        ((), "norm_flip", None),
        (('protocol.augmentation="none"',), "norm", None),
        (("protocol.resize=256",), "norm_256_flip", None),
        (("task.image_size=24",), "norm_24_flip", ["Resize", "RandomHorizontalFlip"]),
        (("protocol.augmentation=crop_flip",), "norm_crop_flip", ["RandomCrop(32, padding=4)"]),
    ],
)
def test_a_transform_that_lemur_lacks_is_written_beside(
    overrides: tuple[str, ...], name: str, steps: list[str] | None, tmp_path: Path
) -> None:
    export(finished_run(tmp_path / "run", *overrides), tmp_path / "out")
    (file,) = (tmp_path / "out").rglob("*.json")
    assert json.loads(file.read_text())[0]["transform"] == name
    written = tmp_path / "out" / "transform" / f"{name}.py"
    assert written.is_file() is (steps is not None)
    if steps is not None:
        source = written.read_text()
        compile(source, name, "exec")
        assert all(step in source for step in [*steps, "ToTensor()", "Normalize(*norm)"])


@pytest.fixture
def lemur(tmp_path: Path) -> Path:
    """LEMUR's own code of its release, without its networks and statistics."""
    wheel = cache_dir() / "wheels" / LEMUR_WHEEL.filename
    if not wheel.is_file():
        pytest.skip("the wheel of nn-dataset is not in the cache")
    root = tmp_path / "lemur"
    with zipfile.ZipFile(wheel) as archive:
        wanted = ("ab/nn/util/", "ab/nn/transform/", "ab/nn/metric/")
        archive.extractall(root, [m for m in archive.namelist() if m.startswith(wanted)])
    # Its own import everything that training needs.
    for package in ("ab", "ab/nn"):
        (root / package / "__init__.py").write_text("")
    return root


@pytest.mark.parametrize("augmentation", ["flip", "crop_flip"])
def test_lemurs_reader_takes_an_exported_run(
    augmentation: str, lemur: Path, tmp_path: Path
) -> None:
    run = finished_run(tmp_path / "run", f"protocol.augmentation={augmentation}")
    name = export(run, tmp_path / "out")
    package = lemur / "ab" / "nn"
    shutil.copytree(tmp_path / "out" / "nn", package / "nn")
    shutil.copytree(tmp_path / "out" / "train", package / "stat" / "train")
    if (tmp_path / "out" / "transform").is_dir():
        shutil.copytree(tmp_path / "out" / "transform", package / "transform", dirs_exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-c", READ], cwd=lemur, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout.splitlines()[-1])
    assert (row["task"], row["dataset"], row["metric"], row["nn"], row["epoch"]) == (
        *("img-classification", "cifar-10", "acc", name),
        1,
    )
    assert row["nn_code"].strip() == CODE.strip()
    assert (row["accuracy"], row["duration"]) == (0.5, 2_500_000_000)
    assert row["prm"] == {
        **{"batch": 64, "dropout": 0.2, "lr": 0.01, "momentum": 0.9},
        "transform": f"norm_{augmentation}",
    }
    assert "Normalize(*norm)" in row["transform_code"]
    assert "def " in row["metric_code"]
