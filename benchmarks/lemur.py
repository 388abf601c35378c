"""Fifty networks of LEMUR: archloop's accuracy and wall time against the reference way.

The reference way is :mod:`benchmarks.usual`: build, train and measure in one plain process, as
``ab.nn.util.Train`` of nn-dataset 2.1.0 does. Both train on the same images at 32 pixels with the
same hyperparameters. The reference way runs twice with different seeds, so that its own spread is
known.
"""

from __future__ import annotations

import hashlib
import statistics
import time
from collections.abc import Iterator

import numpy as np
import torch

from archloop.code.policy import check
from archloop.config import ProtocolConfig, SandboxConfig, TaskConfig, load_config
from archloop.corpus.seeds.lemur import LemurSource
from archloop.evaluation.alone import Source, evaluate_many
from archloop.machine.hardware import usable_cores
from archloop.sandbox import Sandbox
from archloop.tasks import load_task
from archloop.types import Outcome, TaskData
from benchmarks import usual
from benchmarks.table import Row, mean_sd

NETWORKS = 50
TRAIN_IMAGES = 5_000
VALIDATION_IMAGES = 2_000
MAX_PARAMS = 500_000


def _networks(task: TaskData) -> list[Source]:
    """Fifty that pass the checks and build, in the order of a hash of their names."""
    found: list[Source] = []
    everything = sorted(
        LemurSource().networks(), key=lambda n: hashlib.sha256(n.name.encode()).digest()
    )
    with Sandbox(SandboxConfig()) as sandbox:
        for network in everything:
            if check(network.code) is not None:
                continue
            verdict = sandbox.probe(
                network.code,
                shape=task.info.shape,
                classes=task.info.classes,
                max_params=MAX_PARAMS,
                meta=True,
            )
            if verdict.outcome is Outcome.VALID:
                found.append(Source(network.name, network.code))
            if len(found) == NETWORKS:
                break
    return found


def all_rows() -> Iterator[Row]:
    """Agreement and ratio."""
    protocol = ProtocolConfig(train_images=TRAIN_IMAGES, validation_images=VALIDATION_IMAGES)
    task = load_task(TaskConfig(name="cifar10"), protocol)
    files, held = usual.encode(task.train_images), usual.encode(task.validation_images)
    sources = _networks(task)
    config = load_config("embedded").model_copy(update={"protocol": protocol})
    started = time.perf_counter()
    rows = {row.id: row for row in evaluate_many(sources, config, task)}
    seconds = time.perf_counter() - started
    torch.set_num_threads(usable_cores())
    theirs, again, broken = {}, {}, []
    usual_seconds = 0.0
    for source in sources:
        try:
            first = usual.train(source.code, task, files, held, seed=0)
            second = usual.train(source.code, task, files, held, seed=1)
        except Exception as error:  # noqa: BLE001 - a network that fails there is a row of the comparison
            broken.append((source.id, f"{type(error).__name__}: {error}"[:80]))
            continue
        theirs[source.id], again[source.id] = first.accuracy, second.accuracy
        usual_seconds += first.seconds
    valid = [k for k in theirs if rows[k].first_epoch_accuracy is not None]
    ours = np.array([rows[k].first_epoch_accuracy for k in valid])
    a, b = np.array([theirs[k] for k in valid]), np.array([again[k] for k in valid])
    yield Row(
        f"{len(sources)} LEMUR networks, {TRAIN_IMAGES:,} images: accuracy",
        f"{mean_sd(list(ours))}; {sum(r.outcome.is_valid for r in rows.values())} valid",
        f"reference way {mean_sd(list(a))}; {len(theirs)} valid",
    )
    yield Row(
        "difference of one network's accuracies: mean, mean absolute, correlation",
        f"to the reference way {np.mean(ours - a):+.4f}, {np.mean(abs(ours - a)):.4f}, "
        f"{np.corrcoef(ours, a)[0, 1]:.3f}",
        f"reference way, two seeds {np.mean(b - a):+.4f}, {np.mean(abs(b - a)):.4f}, "
        f"{np.corrcoef(b, a)[0, 1]:.3f}",
    )
    yield Row(
        "wall time of a network",
        f"{seconds / len(sources):.2f} s",
        f"reference way {usual_seconds / max(1, len(theirs)):.2f} s",
        usual_seconds / max(1, len(theirs)) / (seconds / len(sources)),
    )
    disagree = [
        f"{k}: {rows[k].outcome.value}" + (f" ({rows[k].error})" if rows[k].error else "")
        for k in theirs
        if not rows[k].outcome.is_valid
    ]
    disagree += [f"{k}: reference way {text}" for k, text in broken]
    yield Row("valid in one way only", "; ".join(disagree) or "none")
    flagged = [f"{k}: {', '.join(r.flags)}" for k, r in sorted(rows.items()) if r.flags]
    yield Row("flagged", "; ".join(flagged) or "none")
    slow = statistics.median(r.train_seconds or 0.0 for r in rows.values())
    yield Row("median epoch", f"{slow:.2f} s")
