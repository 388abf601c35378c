"""``python -m benchmarks.soak [N]``: N trivial candidates through one engine; nothing may grow.

Writes ``out/soak.svg`` and ``out/soak.json``, and fails if memory, file descriptors or latency grew.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import psutil

from archloop.config import ProtocolConfig, SandboxConfig, TaskConfig
from archloop.evaluation.executor import Evaluate, in_order
from archloop.evaluation.local import LocalExecutor
from archloop.machine.hardware import usable_cores
from archloop.tasks import load_task
from archloop.types import Outcome, Verdict
from benchmarks import networks
from benchmarks.table import machine

CANDIDATES = 2_000
EVERY = 20
"""Candidates between two looks."""
MOST_GROWTH_MB = 20.0
MOST_SLOWER = 1.25
"""Median latency of the last fifth against that of the second fifth."""


def main(candidates: int) -> None:
    """Evaluate, look, plot, judge."""
    protocol = ProtocolConfig(train_images=128, validation_images=64, batch_size=32)
    task = load_task(TaskConfig(name="digits"), protocol)
    code = networks.source("1 k")
    config = SandboxConfig()
    verdicts: list[Verdict] = []
    looks: list[dict[str, float]] = []
    with LocalExecutor(config, {"digits": task}, protocol) as executor:
        executor.submit(Evaluate(code, seed=0)).result()  # starts the fork server
        pid = executor.server_pids["digits"]
        me, server = psutil.Process(), psutil.Process(pid)
        started = time.perf_counter()
        for first in range(0, candidates, EVERY):
            since = time.perf_counter()
            jobs = (Evaluate(code, seed=seed) for seed in range(first, first + EVERY))
            verdicts += [evaluated.verdict for evaluated in in_order(executor, jobs)]
            looks.append(
                {
                    "candidates": first + EVERY,
                    "ms": 1000 * (time.perf_counter() - since) / EVERY,
                    "main_mb": me.memory_info().rss / 2**20,
                    "server_mb": server.memory_info().rss / 2**20,
                    "main_fds": me.num_fds(),
                    "server_fds": server.num_fds(),
                    "left": len(server.children(recursive=True)),
                }
            )
        seconds = time.perf_counter() - started
        assert executor.server_pids == {"digits": pid}, "the fork server was replaced"
    valid = sum(v.outcome is Outcome.VALID for v in verdicts)
    out = Path("out")
    out.mkdir(exist_ok=True)
    (out / "soak.json").write_text(json.dumps(looks), "utf-8")
    _plot(looks, out / "soak.svg")
    _judge(looks, valid, candidates, seconds)


def _judge(looks: list[dict[str, float]], valid: int, candidates: int, seconds: float) -> None:
    """Print the figures; end with code 1 if anything grew."""
    fifth = max(1, len(looks) // 5)
    early, late = looks[fifth : 2 * fifth], looks[-fifth:]

    def median(rows: list[dict[str, float]], key: str) -> float:
        return statistics.median(row[key] for row in rows)

    print(f"{valid} of {candidates} valid in {seconds:.0f} s, {usable_cores()} at a time")
    failed = valid < candidates
    for key, most in (
        ("main_mb", MOST_GROWTH_MB),
        ("server_mb", MOST_GROWTH_MB),
        ("main_fds", 0),
        ("server_fds", 0),
        ("left", 0),
    ):
        a, b = median(early, key), median(late, key)
        failed = failed or b - a > most
        print(f"{key}: {a:.1f} -> {b:.1f}")
    a, b = median(early, "ms"), median(late, "ms")
    failed = failed or b > MOST_SLOWER * a
    print(f"ms per candidate: {a:.1f} -> {b:.1f}")
    print(machine())
    sys.exit(1 if failed else 0)


def _plot(looks: list[dict[str, float]], file: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "archloop"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(3, 1, sharex=True, figsize=(7, 6), layout="constrained")
    x = np.array([row["candidates"] for row in looks])
    for axis, keys, label in (
        (axes[0], ("ms",), "ms per candidate"),
        (axes[1], ("main_mb", "server_mb"), "resident memory, MB"),
        (axes[2], ("main_fds", "server_fds", "left"), "descriptors, processes left"),
    ):
        for key in keys:
            axis.plot(x, [row[key] for row in looks], label=key, linewidth=1)
        axis.set_ylim(bottom=0)
        axis.set_ylabel(label)
        axis.legend(frameon=False)
    axes[2].set_xlabel("candidates evaluated")
    figure.savefig(file, metadata={"Date": None})


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else CANDIDATES)
