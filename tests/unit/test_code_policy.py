from __future__ import annotations

import pytest

from archloop.code.clean import clean_source
from archloop.code.policy import MAX_DEPTH, MAX_SOURCE_BYTES, check
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


@pytest.mark.parametrize(
    "line",
    [
        "import os",
        "import torchvision",
        "from subprocess import run",
        "from . import x",
        "from torch.hub import load",
        "import torch.distributed as dist",
        "x = eval('1')",
        "x = open('f')",
        "x = __import__('os')",
        "x = ().__class__.__bases__",
        "x = (lambda: 0).__globals__",
        "x = torch.load('weights')",
        "x = torch.hub",
        "x = dict(f(pretrained=True))",
        f"import {'x' * 5000}",
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
    assert outcome("import os\n" + GOOD.replace("def learn", "def fit")) is (
        Outcome.CONTRACT_VIOLATION
    )
