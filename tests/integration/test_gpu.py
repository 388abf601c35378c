"""Networks on a CUDA GPU: the fence holds there as well, and each level and type gives a result."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import psutil
import pytest
import torch

from archloop.config import ProtocolConfig, SandboxConfig
from archloop.sandbox import Sandbox, why_not
from archloop.types import Isolation, Outcome, TaskData
from conftest import network

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
    pytest.mark.skipif(why_not("confined") is not None, reason="needs Landlock and seccomp"),
]

LIMITS = SandboxConfig(workers=1, memory_mb=4096, train_seconds=60)


def sandbox_at(
    task: TaskData, isolation: Isolation = "confined", precision: Literal["fp32", "bf16"] = "bf16"
) -> Sandbox:
    protocol = ProtocolConfig(batch_size=16, lr=0.05, augmentation="none", precision=precision)
    return Sandbox(LIMITS.model_copy(update={"isolation": isolation}), task=task, protocol=protocol)


def statuses(pid: int) -> list[dict[str, str]]:
    """``/proc/PID/task/*/status`` of every thread."""
    return [
        dict(line.split(":\t", 1) for line in file.read_text().splitlines() if ":\t" in line)
        for file in Path(f"/proc/{pid}/task").glob("*/status")
    ]


def on_the_gpu(server: int) -> list[int]:
    """The candidates below a fork server that have the GPU open."""
    return [
        child.pid
        for child in psutil.Process(server).children(recursive=True)
        if any(
            "/dev/nvidia" in str(fd.readlink()) for fd in Path(f"/proc/{child.pid}/fd").glob("*")
        )
    ]


def test_every_thread_of_a_candidate_is_filtered_those_of_cuda_too(blobs: TaskData) -> None:
    busy = "for _ in range(30_000): self.conv(inputs.to(self.device))"
    learn = f"for inputs, labels in train_data:\n            {busy}\n            break"
    with sandbox_at(blobs) as sandbox, ThreadPoolExecutor(1) as pool:
        verdict = pool.submit(sandbox.evaluate, network(learn=learn), seed=3)
        seen: list[dict[str, str]] = []
        while not verdict.done():
            try:
                now = [status for pid in on_the_gpu(sandbox.server_pid) for status in statuses(pid)]
            except (OSError, psutil.NoSuchProcess):
                continue
            seen = now or seen
            time.sleep(0.01)
        assert verdict.result().outcome is Outcome.VALID, verdict.result()
    assert len(seen) > 1
    assert {(s["Seccomp"], s["NoNewPrivs"]) for s in seen} == {("2", "1")}


def test_candidates_are_spread_over_the_gpus_and_see_one_each(blobs: TaskData) -> None:
    seen = "print('GPU', torch.cuda.get_device_properties(0).uuid, torch.cuda.device_count())"
    code = network(learn=f"{seen}; import time; time.sleep(5)")
    n = torch.cuda.device_count()
    with sandbox_at(blobs) as sandbox, ThreadPoolExecutor(n) as pool:
        verdicts = list(pool.map(lambda seed: sandbox.evaluate(code, seed=seed), range(n)))
    lines = {
        line for v in verdicts for line in (v.output or "").splitlines() if line.startswith("GPU ")
    }
    assert {line.split()[-1] for line in lines} == {"1"}
    assert len(lines) == n


def score(blobs: TaskData, level: Isolation) -> float | None:
    with sandbox_at(blobs, level) as sandbox:
        verdict = sandbox.evaluate(network(), seed=3)
    assert verdict.outcome is Outcome.VALID, verdict
    return verdict.first_epoch_accuracy


needs_bwrap = pytest.mark.skipif(why_not("bwrap") is not None, reason="needs bubblewrap")


@pytest.mark.parametrize("level", ["process", pytest.param("bwrap", marks=needs_bwrap)])
def test_the_level_does_not_change_the_score(blobs: TaskData, level: Isolation) -> None:
    assert score(blobs, level) == score(blobs, "confined")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_network_learns_in_either_type(
    blobs: TaskData, precision: Literal["fp32", "bf16"]
) -> None:
    with sandbox_at(blobs, precision=precision) as sandbox:
        verdict = sandbox.evaluate(network(), seed=3)
    assert verdict.outcome is Outcome.VALID, verdict
    assert verdict.first_epoch_accuracy is not None
    assert verdict.first_epoch_accuracy > 0.9
