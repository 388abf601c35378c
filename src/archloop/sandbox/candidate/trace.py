"""The computation of one forward pass as a plain graph; runs in the candidate's own process.

Every operator that reaches torch's dispatcher is recorded
(:mod:`archloop.sandbox.candidate.recording`), so Python control flow is unrolled, and modules,
functions and methods that compute the same are the same. The network is in evaluation mode and on
the meta device, which computes shapes and no values; one that does not run there is built on the
processor and moved to it, and if that fails too, it computes real values.

Not covered: what happens only in training (dropout, auxiliary heads, the loss), initial values of
parameters, values of tensors that come from random numbers, and writes through ``as_strided`` views
of views. The recording runs in the candidate's process, so a hostile network can report any graph;
the main process checks only that the graph is valid (:func:`archloop.novelty.graph.checked`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from archloop.sandbox.candidate.network import Builder
from archloop.sandbox.candidate.phase import Phase, error_line
from archloop.sandbox.candidate.recording import Recorder, UntraceableError
from archloop.sandbox.job import CandidateJob

META_BATCH = 251
CPU_BATCH = 37
"""Images in the recorded pass. Numbers that are multiples of it are written as such (``"2N"``), so
it is a prime with no multiple among usual widths; the smaller one is for passes that compute."""


@dataclass(frozen=True)
class Traced:
    """A network that was built and, where possible, traced."""

    builder: Builder
    n_params: int
    graph: dict[str, Any] | None
    """As described by :func:`archloop.novelty.graph.checked`."""
    reason: str | None
    """Why there is no graph."""
    weights: dict[int, str] = field(default_factory=dict)
    """Names of the parameters and buffers among the graph's nodes."""


def trace(job: CandidateJob, phase: Phase) -> Traced:
    """Build the network and record its forward pass.

    Args:
        job: As for :class:`Builder`.
        phase: Records the current phase.
    """
    meta, cpu = torch.device("meta"), torch.device("cpu")
    builder, reason = Builder(job, phase), None
    n_params: int | None = None
    with _plain_operators():
        for built_on, run_on in ((meta, meta), (cpu, meta), (cpu, cpu)):
            last = run_on == cpu
            try:
                recorder = Recorder(META_BATCH if run_on == meta else CPU_BATCH)
                net = recorder.build(builder, built_on, run_on)
                n_params = builder.count(net)
            except UntraceableError as error:
                n_params = builder.count(builder.instantiate(cpu))
                return Traced(builder, n_params, None, str(error))
            except Exception:
                if last:
                    raise
                continue
            try:
                graph = recorder.forward(net, job, run_on)
                return Traced(builder, n_params, graph, None, recorder.weights(net))
            except UntraceableError as error:
                return Traced(builder, n_params, None, str(error))
            except Exception as error:  # noqa: BLE001 - any exception of the network is the reason
                reason = error_line(error)
    assert n_params is not None
    return Traced(builder, n_params, None, reason)


@contextlib.contextmanager
def _plain_operators() -> Iterator[None]:
    """Record the same operators on every device: no fused kernels of a single device."""
    fast, onednn = torch.backends.mha.get_fastpath_enabled(), torch._C._get_mkldnn_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    # torch.backends.mkldnn.flags() warns about Intel's GPUs where there are none.
    torch._C._set_mkldnn_enabled(False)
    try:
        with (
            torch.no_grad(),
            torch.backends.cudnn.flags(enabled=False),
            nn.attention.sdpa_kernel(nn.attention.SDPBackend.MATH),
        ):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        torch._C._set_mkldnn_enabled(onednn)
