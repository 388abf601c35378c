"""What runs inside the candidate's own process: build, dummy forward, one epoch, logits.

The network is hostile until proven otherwise. It never holds validation labels, the metric or the
clock: the main process keeps them, sends the validation images after ``learn()`` has returned, and
judges the logits that come back. How a network fails is told by the phase it was in.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import random
import socket
import sys
import types
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from archloop.sandbox import wire
from archloop.sandbox.batches import BatchRecipe, Epoch, Normalise
from archloop.sandbox.text import one_line
from archloop.sandbox.weights import count, trainable_tensors
from archloop.types import Outcome

PROBE_BATCH = 4
"""Images in the dummy forward pass: enough for BatchNorm in training mode."""
PREDICT_BATCH = 250
_MEMORY_SIGNS = ("allocate memory", "out of memory", "bad_alloc", "std::bad_alloc")
_LONGEST_CHAIN = 10
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
        try:
            outcome, text = classify(error, phase.outcome), error_line(error)
        except BaseException:  # noqa: BLE001 - its own exception may refuse to be read
            outcome, text = phase.outcome, "an exception that cannot be printed"
        _report(sock, outcome, text)


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
    _build(sock, module, job, phase)
    if data is None:
        wire.send(sock, {"stage": "done"})
        return
    # A fresh instance: the dummy forward has moved the first one's running statistics.
    _seed(job["seed"])
    net = _instantiate(module, job, phase)
    recipe = BatchRecipe(
        job["batch_size"], job["augmentation"], tuple(job["mean"]), tuple(job["std"])
    )
    _train(module, net, job, Epoch(data.images, data.labels, recipe, job["seed"]), phase)
    wire.send(sock, {"stage": "trained"})
    reply, fd = wire.receive_with_fd(sock)
    assert fd is not None
    _predict(sock, net, job, recipe, _images(fd, reply["shape"]))


def _build(
    sock: socket.socket, module: types.ModuleType, job: dict[str, Any], phase: _Phase
) -> None:
    net = _instantiate(module, job, phase)
    n_params = count(trainable_tensors(net, module))
    over = _over_budget(n_params, job)
    if over is None:
        _dummy_forward(net, job, phase)
        # Lazy layers have their parameters now.
        n_params = count(trainable_tensors(net, module))
        over = _over_budget(n_params, job)
    wire.send(sock, {"stage": "built", "n_params": n_params})
    if over is not None:
        raise over


def _over_budget(n_params: int, job: dict[str, Any]) -> _Fault | None:
    limit = job["max_params"]
    if limit is None or n_params <= limit:
        return None
    return _Fault(Outcome.OVER_BUDGET, f"{n_params:,} parameters; at most {limit:,} are allowed")


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
    for name in ("forward", "train_setup", "learn"):
        method = getattr(net, name, None)
        if not callable(method) or method is nn.Module.forward:
            raise _Fault(phase.outcome, f"Net has no method {name}()")
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


def _where(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """On the meta device everything a network makes has to be there, however it is made."""
    return device if device.type == "meta" else contextlib.nullcontext()


def _instantiate(module: types.ModuleType, job: dict[str, Any], phase: _Phase) -> nn.Module:
    phase.enter(Outcome.INSTANTIATE_ERROR)
    device = _device(job)
    in_shape = (job["batch_size"], *job["shape"])
    with _where(device):
        net: nn.Module = module.Net(in_shape, (job["classes"],), dict(job["prm"]), device)
    return net if device.type == "meta" else net.to(device)


def _dummy_forward(net: nn.Module, job: dict[str, Any], phase: _Phase) -> None:
    phase.enter(Outcome.FORWARD_ERROR)
    net.train()
    device = _device(job)
    with torch.no_grad(), _where(device):
        inputs = torch.zeros((PROBE_BATCH, *job["shape"]), device=device)
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


def _train(
    module: types.ModuleType, net: nn.Module, job: dict[str, Any], epoch: Epoch, phase: _Phase
) -> None:
    phase.enter(Outcome.TRAIN_ERROR)
    steps = _OptimiserSteps()
    contract: Any = net
    contract.train_setup(dict(job["prm"]))
    net.train()
    contract.learn(epoch.batches())
    if epoch.given < epoch.total:
        raise _Fault(
            phase.outcome, f"learn() took {epoch.given} of {epoch.total} batches of the epoch"
        )
    if steps.most > epoch.total:
        raise _Fault(
            phase.outcome,
            f"learn() made {steps.most} steps with one optimiser; "
            f"one epoch has {epoch.total} batches, one step each",
        )
    weights = trainable_tensors(net, module)
    if over := _over_budget(count(weights), job):
        raise over
    if not all(bool(torch.isfinite(w).all()) for w in weights):
        raise _Fault(Outcome.NON_FINITE, "a parameter is NaN or infinite after training")


class _OptimiserSteps:
    """Counts the steps of each optimiser: kept batches can be replayed, steps give it away."""

    def __init__(self) -> None:
        self._counts: dict[torch.optim.Optimizer, int] = {}
        register_optimizer_step_post_hook(self._count)

    def _count(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        self._counts[optimizer] = self._counts.get(optimizer, 0) + 1

    @property
    def most(self) -> int:
        """Steps of the optimiser that made the most."""
        return max(self._counts.values(), default=0)


def _images(fd: int, shape: list[int]) -> NDArray[np.uint8]:
    size = int(np.prod(shape))
    return np.frombuffer(
        mmap.mmap(fd, size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ), np.uint8
    ).reshape(shape)


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
    """The outcome an exception means in a phase; what it was raised from counts too."""
    causes: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and len(causes) < _LONGEST_CHAIN:
        causes.append(cause)
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, MemoryError) or any(sign in str(error) for sign in _MEMORY_SIGNS):
        return Outcome.OUT_OF_MEMORY
    if any(_is_denial(cause) for cause in causes):
        return Outcome.SANDBOX_VIOLATION
    return phase


def _is_denial(error: BaseException) -> bool:
    # A name cannot be resolved where there are no sockets.
    return isinstance(error, socket.gaierror) or (
        isinstance(error, OSError) and error.errno in _DENIED
    )


def error_line(error: BaseException) -> str:
    """``Type: message`` on one line, bounded, without control characters."""
    line = next((part for part in str(error).splitlines() if part.strip()), "")
    return one_line(f"{type(error).__name__}: {line}" if line else type(error).__name__)


def _report(sock: socket.socket, outcome: Outcome, error: str) -> None:
    try:
        wire.send(sock, {"stage": "failed", "outcome": outcome.value, "error": one_line(error)})
    except (wire.WireError, MemoryError):
        return
