"""The jobs of a candidate's processes: probe, graph, one epoch of training, prediction.

Generated code is untrusted. The labels of validation images, the metric and the clock are never in
these processes: the main process keeps them and evaluates the logits. Training and measuring happen
in two processes; only the plain bytes of weights pass from one to the other. The phase in which a
network fails determines its outcome.
"""

from __future__ import annotations

import faulthandler
import gc
import json
import re
import socket
import sys
from typing import Any

import torch
from torch import nn

from archloop.novelty.graph import MAX_BYTES, GraphError, parse, sketch_graph
from archloop.novelty.macs import cost
from archloop.sandbox import wire
from archloop.sandbox.candidate import answers, state
from archloop.sandbox.candidate.network import (
    Builder,
    as_channels_last,
    has_convolutions,
    seed_everything,
)
from archloop.sandbox.candidate.outputs import outputs
from archloop.sandbox.candidate.phase import Fault, Phase, classify, error_line
from archloop.sandbox.candidate.prediction import predict
from archloop.sandbox.candidate.trace import Traced, trace
from archloop.sandbox.candidate.training import train
from archloop.sandbox.feed.feed import TrainData
from archloop.sandbox.job import CandidateJob
from archloop.text import one_line
from archloop.types import Outcome


def serve_candidate(sock: socket.socket, job: CandidateJob) -> None:
    """Run one job and report on the socket; never raises."""
    faulthandler.enable(sys.stderr)
    for stream in (sys.stdout, sys.stderr):
        # Output before a crash must not be lost in a buffer.
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    if job.meta:
        # It allocates next to nothing and ends soon; to look at every object for garbage would copy
        # the pages shared with the fork server.
        gc.disable()
    phase = Phase(sock)
    try:
        _ROLES[job.role](sock, job, phase)
    except Fault as fault:
        _report(sock, fault.outcome, str(fault))
    except BaseException as error:  # noqa: BLE001 - any exception of a network is its outcome
        try:
            outcome, text = classify(error, phase.outcome), error_line(error)
        except BaseException:  # noqa: BLE001 - a hostile exception may raise when it is formatted
            outcome, text = phase.outcome, "an exception that cannot be printed"
        _report(sock, outcome, text)


def _probe(sock: socket.socket, job: CandidateJob, phase: Phase) -> None:
    builder = Builder(job, phase)
    if job.max_params is not None and not job.meta:
        _refuse_far_too_large(sock, builder)
    try:
        _build(sock, builder, builder.instantiate())
    except Fault:
        raise
    except Exception as error:
        if not job.meta or _OF_SIZES.search(str(error)):
            raise
        # Operators whose result depends on values (nonzero, item) have none on the meta device.
        gc.enable()
        seed_everything(job.seed)
        cpu = torch.device("cpu")
        _build(sock, builder, builder.instantiate(cpu), cpu)
    wire.send(sock, {"stage": "done"})


def _trace(sock: socket.socket, job: CandidateJob, phase: Phase) -> None:
    _, data, reason = _traced(sock, job, phase)
    wire.send(sock, {"stage": "graph", "bytes": len(data), "reason": one_line(reason or "")})
    sock.sendall(data)


def _sketch(sock: socket.socket, job: CandidateJob, phase: Phase) -> None:
    """Hash, shingles, structure and cost of the graph, found here, under this process's limits.

    Then what it answers under equal weights; the graph counts whatever becomes of that.
    """
    traced, data, reason = _traced(sock, job, phase)
    message: dict[str, Any] = {"stage": "sketch", "reason": one_line(reason or ""), "bytes": 0}
    shingles = b""
    if data:
        try:
            graph = parse(data)
            found = sketch_graph(graph)
        except GraphError as error:
            message["reason"] = one_line(str(error))
        else:
            shingles = found.shingles
            message |= {"hash": found.hash, "bytes": len(shingles), **cost(graph)._asdict()}
            message |= {"profile": found.profile, "motifs": found.motifs}
    wire.send(sock, message)
    sock.sendall(shingles)
    if shingles:
        values = outputs(traced.builder, job, traced.n_params, graph, traced.weights)
        wire.send(sock, {"stage": "outputs", "values": values})


def _traced(
    sock: socket.socket, job: CandidateJob, phase: Phase
) -> tuple[Traced, bytes, str | None]:
    """The network; its graph as JSON, or nothing and the reason why."""
    traced = trace(job, phase)
    wire.send(sock, {"stage": "built", "n_params": traced.n_params})
    graph = traced.graph
    data = b"" if graph is None else json.dumps(graph, separators=(",", ":")).encode()
    if len(data) > MAX_BYTES:
        reason = f"a graph of {len(data):,} bytes; at most {MAX_BYTES:,} are compared"
        return traced, b"", reason
    return traced, data, traced.reason


def _train(sock: socket.socket, job: CandidateJob, phase: Phase) -> None:
    builder = Builder(job, phase)
    _refuse_far_too_large(sock, builder)
    first = builder.instantiate()
    _build(sock, builder, first)
    bf16 = job.bf16 and builder.takes(first, bf16=True)
    channels_last = (
        job.channels_last
        and has_convolutions(first)
        and builder.takes(as_channels_last(first), bf16=bf16, channels_last=True)
    )
    wire.send(sock, {"stage": "feed", "channels_last": channels_last, "bf16": bf16})
    feed, (ring, peer) = wire.receive_with_fds(sock, 2)
    shape = (job.batch_size, *job.shape)
    with socket.socket(fileno=peer) as source:
        batches = TrainData(source, ring, shape, feed["total"], channels_last=channels_last)
        # A fresh instance: the dummy forward has moved the first one's running statistics.
        seed_everything(job.seed)
        net = builder.instantiate()
        if channels_last:
            as_channels_last(net)
        with builder.precision(bf16=bf16):
            counts = train(builder, net, batches, job, phase)
    try:
        spec, data = state.pack(net)
    except state.StateError as error:
        raise Fault(Outcome.PROTOCOL_VIOLATION, f"a weight cannot be stored: {error}") from None
    answer = answers.answer(net, job, builder.device, channels_last=channels_last)
    wire.send(
        sock, {"stage": "trained", "spec": spec, "bytes": len(data), "answer": answer, **counts}
    )
    sock.sendall(data)


def _predict(sock: socket.socket, job: CandidateJob, phase: Phase) -> None:
    builder = Builder(job, phase)
    seed_everything(job.seed)
    net = builder.instantiate()
    if job.training == "contract":
        phase.enter(Outcome.TRAIN_ERROR)
        contract: Any = net
        contract.train_setup(builder.prm())
    _build(sock, builder, net)
    predict(sock, builder, net, job, phase)


_OF_SIZES = re.compile(
    r"Output size is too small|Kernel size can't be greater|shapes cannot be multiplied"
)
"""Errors that a processor gives too; three in four of LEMUR's networks that do not build."""

_ROLES = {"probe": _probe, "trace": _trace, "sketch": _sketch, "train": _train, "predict": _predict}


def _refuse_far_too_large(sock: socket.socket, builder: Builder) -> None:
    n_params = builder.dry_count()
    if n_params is not None and (over := builder.over_budget(n_params)):
        wire.send(sock, {"stage": "built", "n_params": n_params})
        raise over


def _build(
    sock: socket.socket, builder: Builder, net: nn.Module, device: torch.device | None = None
) -> None:
    """Count parameters, run the dummy forward pass and count again, for lazy layers."""
    n_params = builder.count(net)
    over = builder.over_budget(n_params)
    if over is None:
        builder.dummy_forward(net, device=device)
        n_params = builder.count(net)
        over = builder.over_budget(n_params)
    wire.send(sock, {"stage": "built", "n_params": n_params})
    if over is not None:
        raise over


def _report(sock: socket.socket, outcome: Outcome, error: str) -> None:
    error = one_line(error)
    try:
        wire.send(sock, {"stage": "failed", "outcome": outcome.value, "error": error})
    except (wire.WireError, MemoryError):
        # If the channel is lost, the output still says why this process ended.
        sys.stderr.write(f"not reported: {outcome.value}: {error}\n")
