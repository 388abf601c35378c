"""Every hostile network ends in its expected outcome and leaves nothing behind."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from archloop.config import ProtocolConfig, SandboxConfig, TaskConfig
from archloop.errors import IsolationError
from archloop.sandbox import Sandbox, available_isolation, confine, self_test
from archloop.tasks import load_task
from archloop.types import Isolation, Outcome, TaskData
from conftest import HOSTILE, network

PROTOCOL = ProtocolConfig(batch_size=16, lr=0.05, augmentation="none")
LIMITS = SandboxConfig(
    workers=1, memory_mb=512, disk_mb=16, build_seconds=8, train_seconds=8, predict_seconds=20
)
MAX_PARAMS = 100_000

pytestmark = pytest.mark.skipif(
    available_isolation() != "confined", reason="needs Landlock and seccomp"
)


def sandbox_at(task: TaskData, isolation: Isolation = "confined") -> Sandbox:
    config = LIMITS.model_copy(update={"isolation": isolation})
    return Sandbox(config, task=task, protocol=PROTOCOL)


@pytest.fixture(scope="module")
def sandbox(blobs: TaskData) -> Iterator[Sandbox]:
    os.environ["ARCHLOOP_SECRET"] = "secret"
    with sandbox_at(blobs) as made:
        yield made
    del os.environ["ARCHLOOP_SECRET"]


@pytest.fixture(scope="module")
def honest_accuracy(sandbox: Sandbox) -> float:
    verdict = sandbox.evaluate(network(), seed=3, max_params=MAX_PARAMS)
    assert verdict.outcome is Outcome.VALID, verdict.error
    assert verdict.first_epoch_accuracy is not None
    assert verdict.first_epoch_accuracy > 0.9
    return verdict.first_epoch_accuracy


def expected(file: Path) -> set[str]:
    return set(file.read_text().splitlines()[0].removeprefix("# expected: ").split(","))


def leftovers(sandbox: Sandbox) -> list[str]:
    """Processes under the fork server and folders of its candidates."""
    server = psutil.Process(sandbox.server_pid)
    processes = [str(p) for p in server.children(recursive=True)]
    folders = [str(p) for p in sandbox.candidates_folder.iterdir()]
    return processes + folders


@pytest.mark.parametrize("file", sorted(HOSTILE.glob("*.py")), ids=lambda file: file.stem)
def test_a_hostile_network_is_an_outcome(
    file: Path, sandbox: Sandbox, honest_accuracy: float
) -> None:
    verdict = sandbox.evaluate(file.read_text(), seed=3, max_params=MAX_PARAMS)
    assert verdict.outcome.value in expected(file), verdict
    if verdict.outcome is Outcome.VALID:
        assert verdict.error is None
    else:
        assert verdict.error
        assert verdict.error.isprintable()
        assert verdict.first_epoch_accuracy is None
    assert leftovers(sandbox) == []
    assert not Path("/tmp/archloop-hostile").exists()


def test_an_honest_network_scores_the_same_after_all_of_them(
    sandbox: Sandbox, honest_accuracy: float
) -> None:
    again = sandbox.evaluate(network(), seed=3, max_params=MAX_PARAMS)
    assert again.first_epoch_accuracy == honest_accuracy


def test_the_level_does_not_change_the_score(blobs: TaskData, honest_accuracy: float) -> None:
    with sandbox_at(blobs, "process") as weaker:
        assert weaker.isolation == "process"
        verdict = weaker.evaluate(network(), seed=3, max_params=MAX_PARAMS)
    assert verdict.first_epoch_accuracy == honest_accuracy


def test_descendants_are_killed_without_seccomp_too(blobs: TaskData) -> None:
    orphan = "import os, time\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(600)"
    with sandbox_at(blobs, "process") as weaker:
        weaker.probe(network(top=orphan), shape=(1, 8, 8), classes=4)
        assert leftovers(weaker) == []


def test_chance_is_where_it_should_be(sandbox: Sandbox) -> None:
    constant = sandbox.evaluate((HOSTILE / "constant_logits.py").read_text(), seed=3)
    assert constant.first_epoch_accuracy == 0.25
    digits = load_task(TaskConfig(name="digits"), PROTOCOL)
    shuffled = np.random.default_rng(0).permutation(digits.train_labels)
    with sandbox_at(replace(digits, train_labels=shuffled)) as untrue:
        verdict = untrue.evaluate(network(), seed=3)
    assert verdict.first_epoch_accuracy is not None
    assert verdict.first_epoch_accuracy < 0.2


def test_another_seed_gives_another_network(sandbox: Sandbox) -> None:
    hard = network(learn="self.optimizer = torch.optim.SGD(self.parameters(), lr=1e-5)")
    scores = {sandbox.evaluate(hard, seed=s).first_epoch_accuracy for s in range(4)}
    assert len(scores) > 1


def test_the_meta_device_counts_without_allocating(sandbox: Sandbox) -> None:
    huge = network(init="self.more = nn.Linear(100_000, 100_000)")
    verdict = sandbox.probe(huge, shape=(1, 8, 8), classes=4, max_params=500_000, meta=True)
    assert verdict.outcome is Outcome.OVER_BUDGET
    assert verdict.n_params is not None
    assert verdict.n_params > 10_000_000_000
    assert verdict.error is not None
    assert "500,000" in verdict.error


def test_a_lost_fork_server_is_replaced(blobs: TaskData, honest_accuracy: float) -> None:
    with sandbox_at(blobs) as fragile:
        psutil.Process(fragile.server_pid).kill()
        verdict = fragile.evaluate(network(), seed=3, max_params=MAX_PARAMS)
    assert verdict.first_epoch_accuracy == honest_accuracy


def test_closing_leaves_nothing(blobs: TaskData) -> None:
    before = set(Path(tempfile.gettempdir()).glob("archloop-sandbox-*"))
    made = sandbox_at(blobs)
    pid = made.server_pid
    made.close()
    assert not psutil.pid_exists(pid)
    assert set(Path(tempfile.gettempdir()).glob("archloop-sandbox-*")) <= before


def test_the_self_test_passes() -> None:
    results = self_test(SandboxConfig())
    assert len(results) == 10
    assert [r for r in results if not r.ok] == []


def test_a_missing_level_names_the_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(confine.sys, "platform", "darwin")
    assert available_isolation() == "process"
    with pytest.raises(IsolationError, match=r"--set sandbox\.isolation=process"):
        Sandbox(SandboxConfig())
