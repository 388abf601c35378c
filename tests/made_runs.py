"""Run directories with made-up candidates, for tests of what reads them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from archloop.code.chat import render_code
from archloop.config import RunConfig, load_config
from archloop.machine.session import session
from archloop.store.run_dir import FINISHED, SESSIONS, RunDir
from archloop.store.store import Store
from archloop.types import Completion, CycleStats, GraphSketch, Outcome, Request, Verdict

CONFIG = load_config("paper")


def add_texts(store: Store, cycle: int, texts: list[str]) -> None:
    """Ask for the completions of a cycle, and have them answered."""
    n = len(texts)
    store.add_requests([Request(cycle, i, i, "made", (), 1.0) for i in range(n)])
    store.add_completions([Completion(cycle, i, t, 1, "stop") for i, t in enumerate(texts)])


def write_cycle(store: Store, cycle: int, accuracies: list[float], n_gen: int) -> CycleStats:
    """Sample, judge and commit a cycle whose first candidates are the valid ones."""
    store.add_completions([Completion(cycle, i, "t", i, 10, "stop") for i in range(n_gen)])
    for index in range(n_gen):
        valid = index < len(accuracies)
        verdict = Verdict(Outcome.SYNTAX_ERROR, error="x | y\nz")
        if valid:
            graph = GraphSketch("a", bytes(8))
            verdict = Verdict(Outcome.VALID, None, 4321, accuracies[index], 1.0, graph=graph)
        store.add_verdict(
            cycle,
            index,
            verdict=verdict,
            code="x" if valid else None,
            code_sha256=None,
            isolation="confined" if valid else None,
            protocol="abc123abc123" if valid else None,
            training="contract" if valid else None,
        )
    ends = [
        replace(c, outcome=Outcome.ACCEPTED if accuracy >= 0.4 else Outcome.BELOW_THRESHOLD)
        for c, accuracy in zip(store.candidates(cycle), accuracies, strict=False)
    ]
    above = sum(c.outcome is Outcome.ACCEPTED for c in ends)
    outcomes = {
        "syntax_error": n_gen - len(accuracies),
        "below_threshold": len(accuracies) - above,
        "accepted": above,
    }
    stats = CycleStats(
        cycle=cycle,
        n_gen=n_gen,
        n_valid=len(accuracies),
        n_at_floor=above,
        n_near_duplicate=0,
        n_accepted=above,
        accuracies=tuple(accuracies),
        corpus_size=1698,
        adapter=f"adapters/cycle_{cycle:02d}",
        corpus_sha256="ef" * 32,
        outcomes=outcomes,
        wall_seconds=100.0,
        n_tokens=10 * n_gen,
    )
    store.commit_cycle(stats, ends)
    return stats


def make_run(
    folder: Path, cycles: list[tuple[list[float], int]], config: RunConfig = CONFIG
) -> Path:
    paths = RunDir(folder)
    folder.mkdir(parents=True)
    paths.config.write_text(config.model_dump_json(), "utf-8")
    paths.corpus(1).parent.mkdir()
    paths.corpus(1).touch()
    with Store(paths.database) as store:
        store.set_meta(SESSIONS, [session()])
        for cycle, (accuracies, n_gen) in enumerate(cycles, start=1):
            write_cycle(store, cycle, accuracies, n_gen)
    return folder


def finished_run(root: Path, code: str = "class Net:\n\tpass") -> RunDir:
    """A run with one valid network."""
    paths = RunDir(root)
    root.mkdir(parents=True)
    config = load_config("smoke", ["llm.dtype=float32"])
    paths.config.write_text(config.model_dump_json(), "utf-8")
    with Store(paths.database) as store:
        store.add_completions([Completion(1, 0, render_code(code), 5, 3, "stop")])
        store.add_verdict(
            1,
            0,
            verdict=Verdict(Outcome.VALID, n_params=10, first_epoch_accuracy=0.5),
            code=code,
            code_sha256=None,
            isolation=None,
            protocol=None,
            training=None,
        )
        store.set_meta(FINISHED, "2026-01-01T00:00:00+00:00")
    return paths
