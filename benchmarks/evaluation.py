"""The evaluation engine: verdicts, dry runs, training throughput, the data path, busy cores."""

from __future__ import annotations

import itertools
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import as_completed

import numpy as np
import psutil
import torch
from torch.utils.flop_counter import FlopCounterMode

from archloop.config import ProtocolConfig, SandboxConfig, TaskConfig
from archloop.evaluation.executor import Evaluate, build_executor, in_order
from archloop.machine.hardware import resolved_precision, usable_cores
from archloop.sandbox import Sandbox
from archloop.sandbox.feed.batches import BatchRecipe, Epoch
from archloop.tasks import load_task
from archloop.types import Outcome, TaskData, Verdict
from benchmarks import networks, usual
from benchmarks.table import Row, mean_sd

SHAPE = (3, 32, 32)
SEEDS = 6
STARTS = 5
TRAIN_IMAGES = 20_000

_BROKEN = networks.source("1 k").replace("self.classifier(self.features(x))", "self.classifier(x)")
_FRESH = """
import sys
import torch
module = {}
exec(sys.stdin.read(), module)
net = module["Net"]((64, 3, 32, 32), (10,), {"lr": 0.01, "momentum": 0.9}, torch.device("cpu"))
try:
    net(torch.zeros(4, 3, 32, 32))
except RuntimeError as error:
    print(error)
"""


def verdicts() -> Iterator[Row]:
    """An invalid candidate: fork, confine, build, forward, reap, against a fresh interpreter."""
    fresh: list[float] = []
    ours: list[float] = []
    with Sandbox(SandboxConfig()) as sandbox:
        for _ in range(6):
            started = time.perf_counter()
            done = subprocess.run(
                [sys.executable, "-c", _FRESH], input=_BROKEN, text=True, capture_output=True
            )
            fresh.append(time.perf_counter() - started)
            assert "mat1" in done.stdout, done.stderr
            for _ in range(20):
                started = time.perf_counter()
                verdict = sandbox.probe(_BROKEN, shape=SHAPE, classes=10)
                ours.append(time.perf_counter() - started)
                assert verdict.outcome is Outcome.FORWARD_ERROR, verdict
    ratio = statistics.median(fresh) / statistics.median(ours)
    yield Row(
        "verdict on an invalid network",
        f"{1000 * statistics.median(ours):.0f} ms (median, n {len(ours)}, 95th percentile "
        f"{1000 * float(np.percentile(ours, 95)):.0f} ms)",
        f"fresh interpreter {statistics.median(fresh):.2f} s (median, n {len(fresh)})",
        ratio,
        40.0,
    )


def starts() -> Iterator[Row]:
    """A sandbox ready for candidates: what each cycle after the first saves of a run."""
    task = load_task(TaskConfig(name="cifar10"), ProtocolConfig())
    seconds = []
    for _ in range(STARTS):
        started = time.perf_counter()
        with Sandbox(SandboxConfig(), task=task):
            seconds.append(time.perf_counter() - started)
    yield Row(
        "start of a sandbox with CIFAR-10, once in a run",
        f"{mean_sd(seconds)}, in seconds",
        "each cycle, if every cycle had a sandbox of its own",
    )


def dry_runs() -> Iterator[Row]:
    """Ten billion parameters, under a memory limit a thousandth of what they need."""
    huge = networks.source("1 k").replace("(8, 2), (8, 2)", "(100_000, 2), (100_000, 2)")
    seconds = []
    with Sandbox(SandboxConfig(memory_mb=256)) as sandbox:
        for _ in range(20):
            started = time.perf_counter()
            verdict = sandbox.probe(huge, shape=SHAPE, classes=10, max_params=500_000)
            seconds.append(time.perf_counter() - started)
            assert verdict.outcome is Outcome.OVER_BUDGET, verdict
    yield Row(
        f"over budget, {verdict.n_params:,} parameters, within 256 MB",
        f"{1000 * statistics.median(seconds):.0f} ms (median, n {len(seconds)})",
        "360 GB of weights are never made",
    )


def throughput() -> Iterator[Row]:
    """One epoch and its measurement: ours, cores shared by candidates, against the usual way."""
    plain = ProtocolConfig(train_images=TRAIN_IMAGES)
    fast = plain.model_copy(update={"precision": "auto"})
    task = load_task(TaskConfig(name="cifar10"), plain)
    files = usual.encode(task.train_images)
    held = usual.encode(task.validation_images)
    for size, goal in (("1 k", 4.0), ("50 k", 2.5), ("300 k", 1.5)):
        code = networks.source(size)
        theirs: list[usual.Result] = []
        ours: dict[str, list[Verdict]] = {"fast": [], "plain": []}
        wall = {"fast": 0.0, "plain": 0.0}
        for half in (range(SEEDS // 2), range(SEEDS // 2, SEEDS)):
            torch.set_num_threads(usable_cores())
            theirs += [usual.train(code, task, files, held, seed=s) for s in half]
            for way, protocol in (("fast", fast), ("plain", plain)):
                seconds, verdicts = _ours(code, task, protocol, [*half])
                wall[way] += seconds
                ours[way] += verdicts
        usual_each = statistics.fmean(r.seconds for r in theirs)
        for way, protocol in (("fast", fast), ("plain", plain)):
            precision = resolved_precision(protocol.precision)
            each = wall[way] / SEEDS
            rate = _epoch_flops(code, len(task.train_labels)) / each
            scores = [v.first_epoch_accuracy or 0.0 for v in ours[way]]
            yield Row(
                f"epoch of {size}, {len(task.train_labels):,} images, {precision}, per candidate",
                f"{each:.1f} s, accuracy {mean_sd(scores)}, {rate / 1e9:.0f} GFLOP/s "
                f"({rate / _peak_flops(precision):.0%} of the {precision} matmul peak)",
                f"usual way {usual_each:.1f} s, accuracy {mean_sd([r.accuracy for r in theirs])}",
                usual_each / each,
                goal if way == "fast" else None,
            )
    yield _data_path(task, plain, wall["fast"] / SEEDS * usable_cores())


def _ours(
    code: str, task: TaskData, protocol: ProtocolConfig, seeds: list[int]
) -> tuple[float, list[Verdict]]:
    with build_executor(SandboxConfig(), task, protocol) as executor:
        executor.submit(Evaluate("", seed=0)).result()  # starts the fork server
        started = time.perf_counter()
        jobs = (Evaluate(code, seed=seed) for seed in seeds)
        found = [evaluated.verdict for evaluated in in_order(executor, jobs)]
        return time.perf_counter() - started, found


def _epoch_flops(code: str, images: int) -> float:
    """Of forward and backward passes, the backward one counted as twice the forward one."""
    module: dict[str, type[torch.nn.Module]] = {}
    exec(code, module)
    net = module["Net"]((64, *SHAPE), (10,), {}, torch.device("cpu"))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(torch.zeros(1, *SHAPE))
    return 3.0 * counter.get_total_flops() * images


def _peak_flops(precision: str) -> float:
    """Matrix products on all cores: the best of ten."""
    torch.set_num_threads(usable_cores())
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = torch.randn(2048, 2048, dtype=dtype), torch.randn(2048, 2048, dtype=dtype)
    best = min(_seconds(lambda: a @ b) for _ in range(10))
    return 2.0 * 2048**3 / best


def _seconds(work: object) -> float:
    assert callable(work)
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _data_path(task: TaskData, protocol: ProtocolConfig, epoch_seconds: float) -> Row:
    """All batches of an epoch made on one core, against a whole epoch of the 300 k network."""
    torch.set_num_threads(1)
    info = task.info
    recipe = BatchRecipe(64, protocol.augmentation, info.mean, info.std)
    inputs = torch.empty(64, 32, 32, 3).permute(0, 3, 1, 2)
    labels = torch.empty(64, dtype=torch.int64)
    seconds = []
    for seed in range(5):
        epoch = Epoch(task.train_images, task.train_labels, recipe, seed)
        started = time.perf_counter()
        for index in range(epoch.total):
            epoch.write(index, inputs, labels)
        seconds.append(time.perf_counter() - started)
    share = statistics.median(seconds) / epoch_seconds
    return Row(
        "data path of that epoch, one core",
        f"{statistics.median(seconds):.2f} s (median, n {len(seconds)})",
        f"{share:.1%} of the epoch of 300 k on one core",
        0.05 / share,
        1.0,
    )


def busy_cores() -> Iterator[Row]:
    """Processor time of the machine while candidates wait, counted from the first to the last."""
    protocol = ProtocolConfig(train_images=10_000)
    task = load_task(TaskConfig(name="cifar10"), protocol)
    stop, shares = threading.Event(), []

    def watch() -> None:
        while not stop.is_set():
            shares.append(psutil.cpu_percent(interval=0.5))

    waiting = 8 * usable_cores()
    with build_executor(SandboxConfig(), task, protocol) as executor:
        executor.submit(Evaluate("", seed=0)).result()  # starts the fork server
        watcher = threading.Thread(target=watch)
        watcher.start()
        code = networks.source("50 k")
        jobs = [executor.submit(Evaluate(code, seed=seed)) for seed in range(waiting)]
        # The last ones have nobody waiting behind them.
        for job in itertools.islice(as_completed(jobs), waiting - usable_cores()):
            job.result()
        stop.set()
        watcher.join()
    yield Row(
        f"cores busy, {waiting} candidates of 50 k, 10,000 images each",
        f"{statistics.fmean(shares):.1f} % (mean of {len(shares)} half-seconds)",
        "goal 95 %",
        statistics.fmean(shares) / 95.0,
        1.0,
    )


def all_rows() -> Iterator[Row]:
    """Every measurement, in order."""
    yield from verdicts()
    yield from starts()
    yield from dry_runs()
    yield from busy_cores()
    yield from throughput()
