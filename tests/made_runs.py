"""Run directories with made-up candidates, for tests of what reads them."""

from __future__ import annotations

from pathlib import Path

from archloop.code.chat import render_code
from archloop.config import RunConfig, load_config
from archloop.machine.session import session
from archloop.store.run_dir import FINISHED, SESSIONS, RunDir
from archloop.store.store import Store
from archloop.types import (
    Completion,
    CycleStats,
    Decision,
    GraphSketch,
    NoveltyScores,
    Outcome,
    Request,
    Verdict,
)

CONFIG = load_config("paper")


def add_texts(store: Store, cycle: int, texts: list[str], *, n_tokens: int = 1) -> None:
    """Ask for the completions of a cycle, and have them answered."""
    n = len(texts)
    store.add_requests([Request(cycle, i, i, "made", (), 1.0) for i in range(n)])
    store.add_completions([Completion(cycle, i, t, n_tokens, "stop") for i, t in enumerate(texts)])


def write_cycle(store: Store, cycle: int, accuracies: list[float], n_gen: int) -> CycleStats:
    """Sample, judge and commit a cycle whose first candidates are the valid ones."""
    add_texts(store, cycle, ["t"] * n_gen, n_tokens=10)
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
    scores = NoveltyScores(0.5, False, 0.0, False, None)
    valid = [c for c in store.candidates(cycle) if c.outcome is Outcome.VALID]
    decisions = [
        Decision(c.id, Outcome.ACCEPTED, scores, 0)
        if accuracy >= 0.4
        else Decision(c.id, Outcome.BELOW_THRESHOLD, scores, 0, ("selection.min_accuracy",))
        for c, accuracy in zip(valid, accuracies, strict=True)
    ]
    above = sum(decision.accepted for decision in decisions)
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
        threshold=0.4,
        temperature=0.2,
    )
    store.commit_cycle(stats, decisions)
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
        add_texts(store, 1, [render_code(code)])
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
