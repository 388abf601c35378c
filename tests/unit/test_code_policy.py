from __future__ import annotations

import ast

import pytest

from archloop.code.clean import clean_source
from archloop.code.policy import MAX_DEPTH, MAX_SOURCE_BYTES, check, contract_fault
from archloop.corpus.seeds.narrow import narrow
from archloop.text import MAX_ERROR
from archloop.types import Outcome

GOOD = """
import torch
import torch.nn as nn

def supported_hyperparameters():
    return {'lr', 'momentum'}

class Net(nn.Module):
    def __init__(self, in_shape, out_shape, prm, device):
        super().__init__()

    def forward(self, x):
        return x

    def train_setup(self, prm):
        pass

    def learn(self, train_data):
        pass
"""


def outcome(code: str) -> Outcome | None:
    verdict = check(code)
    if verdict is not None:
        assert verdict.error
        assert "\n" not in verdict.error
        assert len(verdict.error) <= MAX_ERROR
    return verdict.outcome if verdict else None


def test_a_network_that_keeps_the_contract_passes() -> None:
    assert check(GOOD) is None


@pytest.mark.parametrize(
    "code",
    [
        *("def f(:", "class Net", "x = '\x00'", "(" * 20_000, "x = 1" + "\n" * MAX_SOURCE_BYTES),
        *(f"{GOOD}\nx = 1{' + 1' * 400}", f"{GOOD}\nx = 1{'.real' * 400}"),
    ],
)
def test_what_does_not_parse_is_a_syntax_error(code: str) -> None:
    assert outcome(code) is Outcome.SYNTAX_ERROR


@pytest.mark.parametrize(("left", "right"), [("1 + ", ""), ("{1: ", "}"), ("[*", "]")])
def test_what_passes_can_be_cleaned_and_narrowed(left: str, right: str) -> None:
    code = next(
        code
        for n in range(MAX_DEPTH, 0, -1)
        if check(code := f"{GOOD}\nx = {left * n}1{right * n}") is None
    )
    assert narrow(clean_source(code), 0.5, 0.5)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("class Net(nn.Module)", "class Network(nn.Module)"),
        ("class Net(nn.Module)", "class Net"),
        ("def forward", "def forwards"),
        ("def learn", "def fit"),
        ("def train_setup", "def setup"),
        ("def supported_hyperparameters", "def hyperparameters"),
        ("in_shape, out_shape, prm, device", "in_shape, out_shape"),
        ("in_shape, out_shape, prm, device", "a, b, c, d, e"),
        ("in_shape, out_shape, prm, device", f"a, b, c, d, {'e' * 5000}"),
        ("in_shape, out_shape, prm, device", "in_shape, out_shape, prm, device, *, more"),
    ],
)
def test_a_broken_contract_is_named(old: str, new: str) -> None:
    assert outcome(GOOD.replace(old, new)) is Outcome.CONTRACT_VIOLATION


@pytest.mark.parametrize(
    "arguments", ["in_shape, out_shape, prm, device, extra=1", "a, b, c, d", "*args", "s, *rest"]
)
def test_any_signature_that_takes_the_four_is_fine(arguments: str) -> None:
    assert check(GOOD.replace("in_shape, out_shape, prm, device", arguments)) is None


def test_methods_may_come_from_a_base_in_the_module() -> None:
    base = GOOD.replace("class Net(nn.Module)", "class Base(nn.Module)")
    assert check(base + "\nclass Net(Base):\n    pass\n") is None


BOTH = GOOD.index("    def train_setup")
BARE, METHODS = GOOD[:BOTH], GOOD[BOTH:]
"""A network without the two methods, and the methods."""


@pytest.mark.parametrize(
    "code",
    [
        GOOD.replace("def train_setup", "def _a").replace("def learn", "def _b")
        + "    train_setup = _a\n    learn: object = _b\n",
        BARE + "\ndef fit(net, data): pass\nNet.learn = fit\nsetattr(Net, 'train_setup', fit)\n",
        BARE.replace("        super().__init__()", "        super().__init__()\n"
                     "        self.train_setup = self.learn = print"),
        BARE.replace("class Net(nn.Module)", f"class M:\n{METHODS}\nclass Net(M, nn.Module)"),
        BARE.replace("class Net(nn.Module)", "class Net(bases())"),
        BARE.replace("class Net(", "@with_methods\nclass Net("),
        BARE + "    if True:\n        train_setup = learn = print\n",
        GOOD.replace("class Net(", "class Model(") + "\nNet = Model\n",
        GOOD.replace("def supported_hyperparameters():\n    return",
                     "supported_hyperparameters = lambda:"),
        GOOD.replace("    def forward(self, x):\n        return x\n", "")
        .replace("(nn.Module)", "(nn.Sequential)"),
    ],
)  # fmt: skip
def test_methods_come_by_assignment_and_inheritance_too(code: str) -> None:
    assert contract_fault(ast.parse(code)) is None


@pytest.mark.parametrize(
    "code",
    [
        BARE,
        BARE.replace("nn.Module", "torch.nn.Module"),
        BARE + "\nclass Other(nn.Module):\n" + METHODS,
        BARE.replace("(nn.Module)", "(Base)") + "\nclass Base(nn.Module):\n    pass\n",
        BARE.replace("(nn.Module)", "(nn.Sequential)"),
    ],
)
def test_methods_that_are_nowhere_are_named(code: str) -> None:
    assert contract_fault(ast.parse(code)) == "class Net lacks train_setup, learn"


@pytest.mark.parametrize(
    ("line", "what", "instead"),
    [
        ("import tqdm\nf(tqdm.std)", "import of tqdm (line 20)", "loop over train_data itself"),
        ("from torchvision import ops\nx = ops", "import of torchvision.ops", "with torch.nn"),
        ("import socket\nsocket.socket()", "import of socket", "allowed are torch, numpy, math"),
        ("x = super().__getattr__", "__getattr__ (line 20)", "getattr()"),
        ("x = ().__subclasses__", "__subclasses__ (line 20)", "__init__, __call__"),
        ("x = open('f')", "call of open (line 20)", "train_data"),
        ("x = eval('1')", "call of eval (line 20)", "write that code out"),
        ("x = torch.load('f')", "torch.load (line 20)", "torch.nn.init"),
        ("import torch.hub as h\nh.load", "import of torch.hub", "loads files"),
    ],
)
def test_what_is_forbidden_has_a_reason_and_what_is_allowed(
    line: str, what: str, instead: str
) -> None:
    verdict = check(GOOD + line + "\n")
    assert verdict is not None
    assert verdict.error is not None
    assert verdict.error.startswith(what)
    assert " is forbidden: " in verdict.error
    assert instead in verdict.error
    assert len(verdict.error) < MAX_ERROR, "nothing was cut off"


@pytest.mark.parametrize(
    "line",
    [
        "import os\nos.system('ls')",
        "import torchvision\nx = torchvision.ops",
        "from subprocess import run\nrun(['ls'])",
        "from . import x\ny = x",
        "from torch.hub import load\nx = load('m')",
        "import torch.distributed as dist\nx = dist.get_rank()",
        "x = eval('1')",
        "x = open('f')",
        "x = __import__('os')",
        "x = ().__class__.__bases__",
        "x = (lambda: 0).__globals__",
        "x = torch.load('weights')",
        "x = torch.hub",
        "x = dict(f(pretrained=True))",
        f"import {'x' * 5000}\ny = {'x' * 5000}",
    ],
)
def test_what_a_network_does_not_need_is_forbidden(line: str) -> None:
    assert outcome(GOOD + line + "\n") is Outcome.FORBIDDEN_CODE


@pytest.mark.parametrize(
    "line",
    ["import math", "import torch.nn.functional as F", "from typing import List", "import numpy"],
)
def test_what_networks_use_is_allowed(line: str) -> None:
    assert check(line + GOOD) is None


def test_the_ladder_puts_the_contract_before_the_policy() -> None:
    code = "import os\nos.abort()\n" + GOOD.replace("def learn", "def fit")
    assert outcome(code) is Outcome.CONTRACT_VIOLATION
