"""From a candidate's source to a network: import, contract, instantiate, count, dummy forward."""

from __future__ import annotations

import contextlib
import linecache
import random
import sys
import types
from typing import Any

import numpy as np
import torch
from torch import nn

from archloop.sandbox.candidate.hyperparameters import Hyperparameters
from archloop.sandbox.candidate.phase import SOURCE, Fault, Phase
from archloop.sandbox.candidate.state import tensors
from archloop.sandbox.candidate.weights import count, trainable_tensors
from archloop.sandbox.job import CandidateJob
from archloop.types import Outcome

PROBE_BATCH = 4
"""Images in the dummy forward pass: enough for BatchNorm in training mode."""
_METHODS = ("forward", "train_setup", "learn")


def seed_everything(seed: int) -> None:
    """Seed the random generators of Python, numpy and torch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    if torch.cuda.is_available():
        torch.manual_seed(seed)
    else:
        # The same generator as torch.manual_seed, which would also record the caller's stack for
        # absent devices (3 ms in each process).
        torch.default_generator.manual_seed(seed)


class Builder:
    """One candidate's module, and the networks made from it.

    Args:
        job: What is to be done with it.
        phase: Told how far it is.
    """

    def __init__(self, job: CandidateJob, phase: Phase) -> None:
        self._job, self._phase = job, phase
        seed_everything(job.seed)
        torch.set_num_threads(job.threads)
        self.module = _execute(job.code)
        self._declared = _check_contract(self.module, phase)

    @property
    def device(self) -> torch.device:
        """Where the network lives."""
        if self._job.meta:
            return torch.device("meta")
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def instantiate(self, device: torch.device | None = None) -> nn.Module:
        """``Net(in_shape, out_shape, prm, device)``."""
        self._phase.enter(Outcome.INSTANTIATE_ERROR)
        job, device = self._job, device or self.device
        in_shape = (job.batch_size, *job.shape)
        with _where(device):
            net: nn.Module = self.module.Net(in_shape, (job.classes,), self.prm(), device)
        for name in _METHODS:
            method = getattr(net, name, None)
            if not callable(method) or getattr(method, "__func__", None) is nn.Module.forward:
                raise Fault(Outcome.CONTRACT_VIOLATION, f"Net has no method {name}()")
        return net if device.type == "meta" else net.to(device)

    def prm(self) -> Hyperparameters:
        """A new copy of the hyperparameters, as a network is given them."""
        return Hyperparameters(self._job.prm, self._declared)

    def count(self, net: nn.Module) -> int:
        """Parameters in all trainable tensors."""
        return count(trainable_tensors(net, self.module))

    def over_budget(self, n_params: int) -> Fault | None:
        """The fault, if these are too many."""
        limit = self._job.max_params
        if limit is None or n_params <= limit:
            return None
        return Fault(Outcome.OVER_BUDGET, f"{n_params:,} parameters; at most {limit:,} are allowed")

    def dry_count(self) -> int | None:
        """Parameters on the meta device, which allocates none; ``None`` if it is not built there.

        A network that is far too large is detected before it allocates memory.
        """
        try:
            return self.count(self.instantiate(torch.device("meta")))
        except Exception:  # noqa: BLE001 - the error is raised again when it is built on the real device
            return None

    def dummy_forward(
        self,
        net: nn.Module,
        *,
        channels_last: bool = False,
        device: torch.device | None = None,
    ) -> None:
        """A batch of noise in training mode, with gradients, as training itself goes through it.

        The logits must have the right shape. Zeros are no stand-in for images: masks are empty and
        matrices singular. The noise comes from a generator of its own.
        """
        self._phase.enter(Outcome.FORWARD_ERROR)
        net.train()
        job, device = self._job, device or self.device
        with torch.enable_grad(), _where(device):
            inputs = noise(PROBE_BATCH, job.shape).to(device)
            if channels_last:
                inputs = inputs.contiguous(memory_format=torch.channels_last)
            check_logits(net(inputs), PROBE_BATCH, job.classes)

    def takes(self, net: nn.Module, *, bf16: bool, channels_last: bool = False) -> bool:
        """Whether the forward pass works in another precision and memory layout."""
        try:
            with self.precision(bf16=bf16):
                self.dummy_forward(net, channels_last=channels_last)
        except Exception:  # noqa: BLE001 - any failure means that it does not
            return False
        return True

    def precision(self, *, bf16: bool) -> torch.autocast:
        """The autocast context of the forward pass.

        Autocast's cache of cast weights is off: it lasts as long as the context, here the whole
        epoch, so the network would keep computing with its initial weights.
        """
        return torch.autocast(
            self.device.type, dtype=torch.bfloat16, enabled=bf16, cache_enabled=False
        )


def has_convolutions(net: nn.Module) -> bool:
    """Whether the channels-last layout can make the network faster."""
    return any(isinstance(m, nn.Conv2d) for m in net.modules())


def as_channels_last(net: nn.Module) -> nn.Module:
    """The same network with its four-dimensional weights in that layout.

    Weights that a lazy layer has not made yet are left alone: they work in either layout.
    """
    for tensor in tensors(net).values():
        if tensor.dim() == 4:
            tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)
    return net


def noise(n: int, shape: tuple[int, ...]) -> torch.Tensor:
    """Always the same batch (n, *shape) of normal noise; the network's generator is not touched."""
    with torch.device("cpu"):
        return torch.randn((n, *shape), generator=torch.Generator().manual_seed(0))


def check_logits(logits: Any, n: int, classes: int) -> None:
    """Refuse anything but a float tensor of (n, classes)."""
    if not isinstance(logits, torch.Tensor):
        raise Fault(
            Outcome.FORWARD_ERROR, f"forward() gave {type(logits).__name__}; expected a tensor"
        )
    if tuple(logits.shape) != (n, classes) or not logits.is_floating_point():
        raise Fault(
            Outcome.FORWARD_ERROR,
            f"forward() gave {logits.dtype} of shape {tuple(logits.shape)}; "
            f"expected floats of shape ({n}, {classes})",
        )


def _execute(code: str) -> types.ModuleType:
    module = types.ModuleType("candidate")
    sys.modules["candidate"] = module
    # Where TorchScript and inspect.getsource() look for the source.
    module.__file__ = SOURCE
    linecache.cache[SOURCE] = (len(code), None, code.splitlines(keepends=True), SOURCE)
    exec(compile(code, SOURCE, "exec"), module.__dict__)
    return module


def _check_contract(module: types.ModuleType, phase: Phase) -> frozenset[str]:
    """Check what the module defines; methods are checked on an instance, which may bring its own.

    Returns:
        The hyperparameters that it declares.
    """
    phase.enter(Outcome.CONTRACT_VIOLATION)
    net = getattr(module, "Net", None)
    if not (isinstance(net, type) and issubclass(net, nn.Module)):
        raise Fault(phase.outcome, "Net is not a subclass of torch.nn.Module")
    if not callable(getattr(module, "supported_hyperparameters", None)):
        raise Fault(phase.outcome, "supported_hyperparameters is no function")
    names = module.supported_hyperparameters()
    if not isinstance(names, set | list | tuple | frozenset):
        raise Fault(
            phase.outcome,
            f"supported_hyperparameters() gave {type(names).__name__}; expected a set",
        )
    return frozenset(name for name in names if isinstance(name, str))


def _where(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """A context in which factory functions create every tensor on the meta device, if asked."""
    return device if device.type == "meta" else contextlib.nullcontext()
