"""The sandbox attacks itself: hostile networks, each with the outcome that shows containment."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from archloop.config import SandboxConfig
from archloop.sandbox.host.client import Sandbox
from archloop.types import Outcome

_SECRET = "ARCHLOOP_SELF_TEST_SECRET"
_HOME = next(str(path) for path in (Path(os.environ.get("HOME", "/")), Path("/")) if path.is_dir())

_NET = """
import torch
import torch.nn as nn

def supported_hyperparameters():
    return {'lr', 'momentum'}

class Net(nn.Module):
    def __init__(self, in_shape, out_shape, prm, device):
        super().__init__()
        self.layer = nn.Linear(in_shape[1] * in_shape[2] * in_shape[3], out_shape[0])
        attack()

    def forward(self, x):
        return self.layer(x.flatten(1))

    def train_setup(self, prm):
        pass

    def learn(self, train_data):
        pass

def attack():
"""


@dataclass(frozen=True)
class SelfTest:
    """One attack."""

    name: str
    ok: bool
    detail: str


@dataclass(frozen=True)
class _Attack:
    name: str
    body: str
    expected: tuple[Outcome, ...]
    only_confined: bool = False


_ATTACKS = (
    _Attack("an honest network runs", "pass", (Outcome.VALID,)),
    _Attack(
        "an environment secret is not there",
        f"import os; assert '{_SECRET}' not in os.environ",
        (Outcome.VALID,),
    ),
    _Attack(
        "a file outside cannot be written",
        "open('/tmp/archloop-self-test', 'w')",
        (Outcome.SANDBOX_VIOLATION,),
        True,
    ),
    _Attack(
        "the home folder cannot be read",
        f"import os; os.listdir({_HOME!r})",
        (Outcome.SANDBOX_VIOLATION,),
        True,
    ),
    _Attack("no network", "import socket; socket.socket()", (Outcome.SANDBOX_VIOLATION,), True),
    _Attack(
        "no new program",
        "import os; os.execv('/bin/true', ['true'])",
        (Outcome.SANDBOX_VIOLATION,),
        True,
    ),
    _Attack("no new process", "import os; os.fork()", (Outcome.SANDBOX_VIOLATION,), True),
    _Attack(
        "names in folders of others are not told",
        "import ctypes; assert ctypes.CDLL(None).inotify_init() < 0",
        (Outcome.VALID,),
        True,
    ),
    _Attack(
        "files cannot be locked",
        "import fcntl; fcntl.flock(0, fcntl.LOCK_SH | fcntl.LOCK_NB)",
        (Outcome.SANDBOX_VIOLATION,),
        True,
    ),
    _Attack(
        "the end of its parent is its end",
        "import ctypes; assert ctypes.CDLL(None).prctl(1, 0, 0, 0, 0)",
        (Outcome.VALID,),
        True,
    ),
    _Attack(
        "a user id of its own, where archloop is root",
        f"import os; assert os.getuid() or {os.geteuid() != 0}",
        (Outcome.VALID,),
    ),
    _Attack(
        "memory is limited",
        "keep = [torch.ones(1 << 26) for _ in range(1 << 12)]",
        (Outcome.OUT_OF_MEMORY,),
    ),
    _Attack("time is limited", "while True: pass", (Outcome.TIMEOUT,)),
    _Attack(
        "a crash is an outcome",
        "import os; os.abort()",
        (Outcome.INSTANTIATE_ERROR, Outcome.IMPORT_ERROR),
    ),
)


def self_test(config: SandboxConfig) -> list[SelfTest]:
    """Attack a sandbox of this configuration; every row must be ok.

    Raises:
        IsolationError: The isolation level is not available on this machine.
    """
    tight = config.model_copy(update={"memory_mb": 512, "build_seconds": 3.0})
    results = []
    os.environ[_SECRET] = "secret"
    try:
        sandbox = Sandbox(tight)
    finally:
        del os.environ[_SECRET]
    with sandbox:
        for attack in _ATTACKS:
            if attack.only_confined and config.isolation == "process":
                continue
            verdict = sandbox.probe(_NET + f"    {attack.body}\n", shape=(1, 8, 8), classes=2)
            detail = verdict.outcome.value + (f": {verdict.error}" if verdict.error else "")
            results.append(SelfTest(attack.name, verdict.outcome in attack.expected, detail))
    return results
