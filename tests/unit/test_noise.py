"""What does nothing for a network is removed before it is judged; what does something stays."""

from __future__ import annotations

import pytest

from archloop.code.noise import without_noise
from archloop.code.policy import check
from archloop.corpus.seeds.prepare import prepare
from archloop.types import Outcome

NETWORK = """
import torch
import torch.nn as nn
{imports}

def supported_hyperparameters():
    return {{'lr', 'momentum'}}

class Net(nn.Module):
    def __init__(self, in_shape, out_shape, prm, device):
        super().__init__()
        self.layer = nn.Linear(12, out_shape[0])

    def forward(self, x):
        return self.layer(x)

    def train_setup(self, prm):
        pass

    def learn(self, train_data):
{body}
"""


def network(imports: str, body: str) -> str:
    inner = "\n".join(" " * 8 + line for line in body.splitlines())
    return NETWORK.format(imports=imports, body=inner)


LOOP = "for x, y in train_data:\n    self(x)"

NOISY = [
    ("import gc", f"{LOOP}\ngc.collect()"),
    ("import gc, sys, os", f"{LOOP}\n    gc.collect(); sys.stdout.flush()"),
    ("import time", f"start = time.time()\n{LOOP}\nprint('took', round(time.time() - start, 1))"),
    ("from time import perf_counter as now", f"t = 0.0\n{LOOP}\n    t += now()\nprint(t)"),
    ("import datetime", f"print(datetime.datetime.now().strftime('%H'))\n{LOOP}"),
    ("import logging\nlog = logging.getLogger(__name__)", f"{LOOP}\n    log.info('x %d', len(x))"),
    ("import logging", f"self.log = logging.getLogger('n')\n{LOOP}\nself.log.warning('done')"),
    ("import traceback", f"try:\n    {LOOP.replace(chr(10), chr(10) + '    ')}\nexcept ValueError:"
     "\n    traceback.print_exc()"),
    ("import os\nos.environ['OMP_NUM_THREADS'] = '4'", LOOP),
    ("import torchvision.transforms as T", LOOP),
    ("from tqdm import tqdm", "for x, y in tqdm(train_data, desc='epoch'):\n    self(x)"),
    ("import tqdm", "for x, y in tqdm.tqdm(\n    train_data,\n    leave=False,\n):\n    self(x)"),
    ("from tqdm.auto import tqdm, trange", "for _ in trange(1):\n    bar = tqdm(train_data)\n"
     "    for x, y in bar:\n        bar.set_postfix(n=len(x))\n        self(x)"),
    ("from tqdm import tqdm", "with tqdm(train_data, unit='batch') as bar:\n    for x, y in bar:\n"
     "        bar.set_description('on')\n        self(x)"),
    ("from tqdm import tqdm", "with tqdm(total=len(train_data)) as bar:\n    for x, y in "
     "train_data:\n        self(x)\n        bar.update(1)"),
]  # fmt: skip


@pytest.mark.parametrize(("imports", "body"), NOISY)
def test_a_network_is_not_refused_for_noise(imports: str, body: str) -> None:
    code = network(imports, body)
    quiet = without_noise(code)
    assert check(code) is None
    assert quiet.count("\n") == code.count("\n"), "errors name lines of the author's source"
    batches: list[tuple[int, int]] = [(1, 2), (3, 4)]
    assert seen(quiet, iter(batches)) == [1, 3], "it takes the batches as before"
    prepared = prepare(code)
    assert prepared.code is not None
    assert seen(prepared.code, iter(batches)) == [1, 3]


def seen(code: str, train_data: object) -> list[int]:
    """What ``learn`` calls the network with, without torch."""
    found: list[int] = []
    scope: dict[str, object] = {}
    body = code[code.index("    def learn") :]
    exec(f"class Net:\n{body}", scope)  # noqa: S102

    class Called(scope["Net"]):  # type: ignore[misc, name-defined]
        def __call__(self, x: int) -> None:
            found.append(x)

    class Batches(list):  # type: ignore[type-arg]
        pass

    Called().learn(Batches(train_data))  # type: ignore[call-overload]
    return found


@pytest.mark.parametrize(
    ("imports", "body"),
    [
        ("import time", f"t = time.time()\n{LOOP}\n    if time.time() - t > 60:\n        break"),
        ("import os", "os.system('ls')"),
        ("import os", "width = int(os.environ.get('W', 8))\nself.layer = nn.Linear(width, 2)"),
        ("import sys", "sys.exit()"),
        ("import logging", "logging.info(self.layer(next(train_data)))"),
        ("import time\nclass T:\n    begin = time.time()", "self.x = T.begin"),
        (
            "import time\nclass T:\n    begin = time.time()\n    def f(self): return self.begin",
            LOOP,
        ),
        ("import random, time", "random.seed(time.time())"),
        ("from tqdm import *", LOOP),
    ],
)
def test_what_training_depends_on_is_judged_as_written(imports: str, body: str) -> None:
    code = network(imports, body)
    verdict = check(code)
    assert verdict is not None
    assert verdict.outcome is Outcome.FORBIDDEN_CODE


def test_a_name_is_judged_in_its_own_scope() -> None:
    body = "start = time.time()\nprint(time.time() - start)\nfor x, y in train_data:\n    self(x)"
    code = network("import time\nstart = 3", body) + "\nSIZE = start + 1\n"
    assert check(code) is None
    assert "SIZE = start + 1" in without_noise(code)
    assert "start = 3" in without_noise(code)


def test_a_source_without_forbidden_imports_keeps_every_byte() -> None:
    """Corpora of earlier runs are cleaned to the same text, so their hashes hold."""
    body = f"{LOOP}\n    print(x)\nwarnings.warn('done')"
    code = network("import math, warnings", body)
    assert without_noise(code) == code
    assert "print" not in without_noise(code, thorough=True)


def test_a_print_that_takes_batches_is_no_noise() -> None:
    body = "print(sum(len(x) for x, y in train_data))\nprint(list(train_data))"
    assert "list(train_data)" in without_noise(network("", body), thorough=True)
    assert "sum(" in without_noise(network("", body), thorough=True)


@pytest.mark.parametrize("code", ["import gc\ndef f(:", "import gc; x = '\x00'", "import gc" * 3])
def test_what_does_not_parse_is_left_alone(code: str) -> None:
    assert without_noise(code) == code
