"""The short kernels of the meta device: shapes, types and strides as torch's own give them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch.nn import functional as F

from archloop.sandbox.candidate import meta

CALLS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "relu": F.relu,
    "relu in place": lambda x: F.relu(x, inplace=True),
    "leaky relu in place": lambda x: F.leaky_relu(x, 0.2, inplace=True),
    "elu": F.elu,
    "gelu": F.gelu,
    "silu": F.silu,
    "sigmoid": torch.sigmoid,
    "relu6": F.relu6,
    "hardswish": F.hardswish,
    "a number": lambda x: 2 * x / 3 + 1 - 0.5,
    "two alike": lambda x: x * x + x,
    "broadcast": lambda x: x * x.mean((1, 2), keepdim=True),
    "no dimensions": lambda x: x * x.sum(),
    "other type": lambda x: x + torch.ones(x.shape, dtype=torch.float64, device=x.device),
    "whole numbers": lambda x: x.to(torch.int64) / 2,
    "complex": lambda x: x * 1j,
    "transposed": lambda x: F.relu(x.transpose(0, 1)) + x.transpose(0, 1),
    "linear": lambda x: torch.addmm(x[0, 0], x[0], x[0].t()[:, : x.shape[2]]),
    "linear, one bias": lambda x: torch.addmm(x[0, 0, :1], x[0], x[0].t()),
    "dropout": lambda x: F.dropout(x, 0.3, training=True),
}
REFUSED: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "addmm": lambda x: torch.addmm(x[0, 0], x[0], x[0, :-1]),
    "add": lambda x: x + x[:, :, 1:],
    "in place": lambda x: x.to(torch.int64).sigmoid_(),
}


@pytest.fixture(scope="module", autouse=True)
def _installed() -> Iterator[None]:
    meta.install()
    yield
    meta._library.pop()


def square(device: str) -> torch.Tensor:
    return torch.ones(2, 5, 5, device=device)


@pytest.mark.parametrize("name", CALLS)
def test_the_result_is_laid_out_as_on_a_real_device(name: str) -> None:
    expected, found = CALLS[name](square("cpu")), CALLS[name](square("meta"))
    assert found.device.type == "meta"
    assert (found.shape, found.dtype, found.stride()) == (
        expected.shape,
        expected.dtype,
        expected.stride(),
    )


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_real_device_refuses_is_refused(name: str) -> None:
    with pytest.raises(RuntimeError):
        REFUSED[name](square("cpu"))
    with pytest.raises(RuntimeError):
        REFUSED[name](square("meta"))


def test_a_result_is_no_input() -> None:
    x = square("meta")
    assert F.relu(x) is not x
    assert F.relu(x, inplace=True) is x
