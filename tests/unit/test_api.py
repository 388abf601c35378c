"""``import archloop`` in a notebook: what is there, how light it is, what a run shows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import archloop
from archloop.progress import Observer, Progress, RunProgress
from archloop.store.run_dir import Run
from made_runs import finished_run

PUBLIC = ["Run", "evaluate", "load_config", "run", "stats"]


def test_dir_shows_the_public_names_and_importing_loads_nothing() -> None:
    said = (
        "import sys, archloop\n"
        "names = [n for n in dir(archloop) if not n.startswith('_')]\n"
        "print(*names, *sorted(m for m in sys.modules if m.startswith('archloop.')))\n"
        "print(*({'torch', 'numpy', 'pandas', 'rich', 'pydantic'} & set(sys.modules)))\n"
        "archloop.load_config, archloop.stats\n"
        "print(*[n for n in dir(archloop) if not n.startswith('_')])"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", said], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == [" ".join(PUBLIC), "", " ".join(PUBLIC)]
    assert sorted(archloop.__all__) == PUBLIC
    for name in PUBLIC:
        assert getattr(archloop, name) is not None


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[object, Path]]:
    """A loop that does nothing but say so; a real one takes minutes."""
    calls: list[tuple[object, Path]] = []

    def run_loop(config: object, run_dir: Path, observer: Observer) -> Run:
        calls.append((config, run_dir))
        observer.update(
            Progress("candidates", done=3, total=4, unit="candidates", run=RunProgress(1, 2, 5.0))
        )
        observer.message("cycle 1: done")
        return Run.open(finished_run(tmp_path / "done" / str(len(calls))).root)

    monkeypatch.setattr("archloop.api.run_loop", run_loop)
    return calls


def test_a_run_outside_a_terminal_prints_its_progress(
    loop: list[tuple[object, Path]], capsys: pytest.CaptureFixture[str]
) -> None:
    with archloop.run("demo") as run:
        assert len(run.candidates()) == 1
    said = capsys.readouterr()
    stage, message = said.err.splitlines()
    assert stage.startswith("cycle 1/2 candidates: 3/4 candidates")
    assert message == "cycle 1: done"
    assert said.out == ""
    assert loop == [(archloop.load_config("demo"), Path("runs/demo"))]


def test_a_run_with_an_observer_of_its_own_prints_nothing(
    loop: list[tuple[object, Path]], capsys: pytest.CaptureFixture[str]
) -> None:
    class Watch:
        said: list[str] = []

        def update(self, progress: Progress) -> None:
            self.said.append(progress.stage)

        def message(self, text: str) -> None:
            self.said.append(text)

    archloop.run(archloop.load_config("smoke"), "there", Watch()).close()
    archloop.run().close()
    assert Watch.said == ["candidates", "cycle 1: done"]
    assert [run_dir for _, run_dir in loop] == [Path("there"), Path("runs/embedded")]
    assert loop[1][0] is None
    assert "cycle 1: done" in capsys.readouterr().err


def test_the_example_in_the_readme_runs(
    loop: list[tuple[object, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text("utf-8")
    example = readme.partition("```python\nimport archloop\n")[2].partition("\n```")[0]
    finished_run(tmp_path / "runs" / "demo", "x = 'best'")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"archloop": archloop, "code": "no network"}
    exec(example, names)
    assert names["row"].outcome == "syntax_error"  # type: ignore[attr-defined]
    assert names["best"]["code"] == "x = 'best'"  # type: ignore[index]
    assert names["low"] < 0.85 < names["high"]  # type: ignore[operator]
