"""What runs inside the candidate's own process: build, dummy forward, one epoch, logits.

The network is hostile until proven otherwise. It never holds validation labels, the metric or the
clock: the main process keeps them, sends the validation images after ``learn()`` has returned, and
judges the logits that come back. How a network fails is told by the phase it was in.
"""

from __future__ import annotations

import errno
import mmap
import random
import socket
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from archloop.sandbox import wire
from archloop.sandbox.batches import BatchRecipe, Epoch, Normalise
from archloop.sandbox.text import one_line
from archloop.types import Outcome

PROBE_BATCH = 4
"""Images in the dummy forward pass: enough for BatchNorm in training mode."""
PREDICT_BATCH = 250
_MEMORY_SIGNS = ("allocate memory", "out of memory", "bad_alloc", "std::bad_alloc")
_DENIED = (errno.EPERM, errno.EACCES, errno.EROFS, errno.EFBIG, errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class TrainingData:
    """The training images as the fork server holds them, read-only and shared by all candidates."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]


class _Fault(Exception):
    """The network did something the harness can name."""

    def __init__(self, outcome: Outcome, error: str) -> None:
        super().__init__(error)
        self.outcome = outcome


def serve_candidate(sock: socket.socket, job: dict[str, Any], data: TrainingData | None) -> None:
    """Run one job and report on the socket; never raises."""
    phase = _Phase(sock)
    try:
        _run(sock, job, data, phase)
    except _Fault as fault:
        _report(sock, fault.outcome, str(fault))
    except BaseException as error:  # noqa: BLE001 - whatever a network raises is its outcome
        _report(sock, classify(error, phase.outcome), error_line(error))


class _Phase:
    """Which outcome an exception means now; the main process is told, should the child die."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.outcome = Outcome.IMPORT_ERROR

    def enter(self, outcome: Outcome) -> None:
        """Go on to the phase in which a failure means ``outcome``."""
        self.outcome = outcome
        wire.send(self._sock, {"stage": "phase", "outcome": outcome.value})


def _run(
    sock: socket.socket, job: dict[str, Any], data: TrainingData | None, phase: _Phase
) -> None:
    _seed(job["seed"])
    torch.set_num_threads(job["threads"])
    module = _execute(job["code"])
    _check_contract(module, phase)
    net = _instantiate(module, job, phase)
    n_params = count_parameters(net)
    limit = job["max_params"]
    if limit is not None and n_params > limit:
        wire.send(sock, {"stage": "built", "n_params": n_params})
        raise _Fault(Outcome.OVER_BUDGET, f"{n_params:,} parameters; at most {limit:,} are allowed")
    _dummy_forward(net, job, phase)
    wire.send(sock, {"stage": "built", "n_params": n_params})
    if data is None:
        wire.send(sock, {"stage": "done"})
        return
    _train_and_predict(sock, module, job, data, phase)


def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def _execute(code: str) -> types.ModuleType:
    module = types.ModuleType("candidate")
    sys.modules["candidate"] = module
    exec(compile(code, "<candidate>", "exec"), module.__dict__)
    return module


def _check_contract(module: types.ModuleType, phase: _Phase) -> None:
    phase.enter(Outcome.CONTRACT_VIOLATION)
    net = getattr(module, "Net", None)
    if not (isinstance(net, type) and issubclass(net, nn.Module)):
        raise _Fault(phase.outcome, "Net is not a subclass of torch.nn.Module")
    names = module.supported_hyperparameters()
    if not isinstance(names, set | list | tuple | frozenset):
        raise _Fault(
            phase.outcome,
            f"supported_hyperparameters() gave {type(names).__name__}; expected a set",
        )


def _device(job: dict[str, Any]) -> torch.device:
    if job["meta"]:
        return torch.device("meta")
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _instantiate(module: types.ModuleType, job: dict[str, Any], phase: _Phase) -> nn.Module:
    phase.enter(Outcome.INSTANTIATE_ERROR)
    device = _device(job)
    in_shape = (job["batch_size"], *job["shape"])
    where = device if job["meta"] else torch.device("cpu")
    with where:
        net: nn.Module = module.Net(in_shape, (job["classes"],), dict(job["prm"]), device)
    return net if job["meta"] else net.to(device)


def count_parameters(net: nn.Module) -> int:
    """Elements of all parameters, and of trainable tensors kept in plain attributes beside them."""
    tensors = {id(p): p for p in net.parameters()}
    for module in net.modules():
        for tensor in _tensors_in(vars(module), depth=3):
            if tensor.requires_grad and tensor.is_leaf:
                tensors.setdefault(id(tensor), tensor)  # type: ignore[arg-type]
    return sum(t.numel() for t in tensors.values())


def _tensors_in(value: Any, depth: int) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif depth and isinstance(value, dict):
        for item in value.values():
            yield from _tensors_in(item, depth - 1)
    elif depth and isinstance(value, list | tuple | set):
        for item in value:
            yield from _tensors_in(item, depth - 1)


def _dummy_forward(net: nn.Module, job: dict[str, Any], phase: _Phase) -> None:
    phase.enter(Outcome.FORWARD_ERROR)
    net.train()
    inputs = torch.zeros((PROBE_BATCH, *job["shape"]), device=_device(job))
    with torch.no_grad():
        check_logits(net(inputs), PROBE_BATCH, job["classes"])


def check_logits(logits: Any, n: int, classes: int) -> None:
    """Refuse anything but a float tensor of (n, classes)."""
    if not isinstance(logits, torch.Tensor):
        raise _Fault(
            Outcome.FORWARD_ERROR, f"forward() gave {type(logits).__name__}; expected a tensor"
        )
    if tuple(logits.shape) != (n, classes) or not logits.is_floating_point():
        raise _Fault(
            Outcome.FORWARD_ERROR,
            f"forward() gave {logits.dtype} of shape {tuple(logits.shape)}; "
            f"expected floats of shape ({n}, {classes})",
        )


def _train_and_predict(
    sock: socket.socket,
    module: types.ModuleType,
    job: dict[str, Any],
    data: TrainingData,
    phase: _Phase,
) -> None:
    recipe = BatchRecipe(
        job["batch_size"], job["augmentation"], tuple(job["mean"]), tuple(job["std"])
    )
    # A fresh instance: the dummy forward has moved the first one's running statistics.
    _seed(job["seed"])
    net = _instantiate(module, job, phase)
    phase.enter(Outcome.TRAIN_ERROR)
    epoch = Epoch(data.images, data.labels, recipe, job["seed"])
    contract: Any = net
    contract.train_setup(dict(job["prm"]))
    net.train()
    contract.learn(epoch.batches())
    if epoch.given < epoch.total:
        raise _Fault(
            phase.outcome, f"learn() took {epoch.given} of {epoch.total} batches of the epoch"
        )
    if not all(bool(torch.isfinite(p).all()) for p in net.parameters()):
        raise _Fault(Outcome.NON_FINITE, "a parameter is NaN or infinite after training")
    wire.send(sock, {"stage": "trained"})
    reply, fd = wire.receive_with_fd(sock)
    assert fd is not None
    _predict(sock, net, job, recipe, _images(fd, reply["shape"]))


def _images(fd: int, shape: list[int]) -> NDArray[np.uint8]:
    size = int(np.prod(shape))
    return np.frombuffer(mmap.mmap(fd, size, prot=mmap.PROT_READ), np.uint8).reshape(shape)


def _predict(
    sock: socket.socket,
    net: nn.Module,
    job: dict[str, Any],
    recipe: BatchRecipe,
    images: NDArray[np.uint8],
) -> None:
    normalise, device, parts = Normalise(recipe), _device(job), []
    net.eval()
    with torch.no_grad():
        for start in range(0, len(images), PREDICT_BATCH):
            inputs = normalise(images[start : start + PREDICT_BATCH])
            logits = net(inputs.to(device))
            check_logits(logits, len(inputs), job["classes"])
            parts.append(logits.detach().as_subclass(torch.Tensor).float().cpu().contiguous())
    whole = torch.cat(parts).numpy()
    wire.send(sock, {"stage": "predicted", "bytes": whole.nbytes})
    sock.sendall(whole.tobytes())


def classify(error: BaseException, phase: Outcome) -> Outcome:
    """The outcome an exception means in a phase."""
    text = str(error)
    if isinstance(error, MemoryError) or any(sign in text for sign in _MEMORY_SIGNS):
        return Outcome.OUT_OF_MEMORY
    if isinstance(error, OSError) and error.errno in _DENIED:
        return Outcome.SANDBOX_VIOLATION
    return phase


def error_line(error: BaseException) -> str:
    """``Type: message`` on one line, bounded, without control characters."""
    try:
        text = str(error)
    except BaseException:  # noqa: BLE001 - a network may raise an exception that cannot be printed
        text = "(not printable)"
    line = next((part for part in text.splitlines() if part.strip()), "")
    return one_line(f"{type(error).__name__}: {line}" if line else type(error).__name__)


def _report(sock: socket.socket, outcome: Outcome, error: str) -> None:
    try:
        wire.send(sock, {"stage": "failed", "outcome": outcome.value, "error": one_line(error)})
    except (OSError, MemoryError):
        return
