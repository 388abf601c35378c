"""What a network answers under weights and images that are the same for every network.

Networks that compute the same give the same logits then, however they are written; the graph
(:mod:`archloop.sandbox.candidate.trace`) tells only what its rules know. A weight is drawn by its
number of elements and its rank among the weights of that size, so names, modules and the order of
statements do not matter; it is equal along the input channels, so their order does not matter, as
it does not for a network that is trained. Kept are a few numbers, which the main process compares
(:mod:`archloop.novelty.outputs`).

Not told apart: ``x + x.flip(1)`` and ``x + x`` before a convolution. Not covered: networks that
draw random numbers in evaluation mode or change from pass to pass, weights that are no parameters
of modules, logits that hardly depend on the image, and large networks.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from archloop.novelty.graph import Graph, references
from archloop.novelty.macs import macs
from archloop.novelty.outputs import LENGTH, TOLERANCE
from archloop.sandbox.candidate import state
from archloop.sandbox.candidate.network import Builder, check_logits, seed_everything
from archloop.sandbox.job import CandidateJob

_BATCH = 4
_MOST_MACS = 500 * 10**6
_MOST_PARAMS = 16 * 10**6
"""Multiply-accumulates of one image, and parameters; larger networks would take seconds."""
_LEAST_SPREAD = 1e-3
"""Of logits over images, as a share of the largest: below, rounding would decide."""


def outputs(
    builder: Builder, job: CandidateJob, n_params: int, graph: Graph, names: dict[int, str]
) -> list[float]:
    """Numbers that are equal, up to rounding, for networks that compute the same.

    Args:
        builder: Of the network.
        job: As for the trace.
        n_params: Its number of parameters.
        graph: The traced graph.
        names: Names of the parameters among its nodes.

    Returns:
        The spread of the logits over images, and projections of the logits; empty: not known.
    """
    try:
        cost = macs(graph)
        if cost is None or cost > _MOST_MACS or n_params > _MOST_PARAMS:
            return []
        return _outputs(builder, job, graph, names)
    except Exception:  # noqa: BLE001 - any exception of the network: not known
        return []


def _outputs(
    builder: Builder, job: CandidateJob, graph: Graph, names: dict[int, str]
) -> list[float]:
    cpu = torch.device("cpu")
    seed_everything(job.seed)
    net = builder.instantiate(cpu)
    if names.values() - state.tensors(net).keys():
        builder.dummy_forward(net, device=cpu)  # lazy layers have no weights before
    with torch.no_grad():
        _fill(net, weight_order(graph, names))
        state.set_eval(net)
        logits = []
        for seed in (1, 2):
            seed_everything(seed)
            answer = net(_images(job.shape))
            check_logits(answer, _BATCH, job.classes)
            plain = answer.detach().as_subclass(torch.Tensor).double()
            # A loss of cross-entropy, and the predicted class, see only differences of logits.
            logits.append(plain - plain.mean(dim=1, keepdim=True))
        first, second = logits
        spread = (first - first.mean(dim=0)).std().item()
        largest = first.abs().max().item()
        if not math.isfinite(spread) or spread <= _LEAST_SPREAD * largest:
            return []
        if (first - second).abs().max().item() > TOLERANCE * spread:
            return []
        mixed = _uniform((LENGTH - 1, first.numel()), 0).double() @ first.flatten()
        return [spread, *(mixed / math.sqrt(first.numel())).tolist()]


def weight_order(graph: Graph, names: dict[int, str]) -> list[str]:
    """Names of the parameters in an order that does not depend on how a network is written.

    A parameter comes after those that its operator rests on; parameters that this leaves equal, as
    those of parallel branches, are in the order in which the output reaches them.
    """
    nodes = graph["nodes"]
    inputs = [[number for number, _ in references(arguments)] for _, arguments, _ in nodes]
    bits: dict[int, int] = {}
    behind: list[int] = []
    """Leaves that each node rests on, as bits."""
    rests_on: dict[int, int] = {}
    for number, (operator, _, _) in enumerate(nodes):
        if number in names or operator == "input":
            bits[number] = 1 << len(bits)
            behind.append(bits[number])
            continue
        mask = 0
        for source in inputs[number]:
            mask |= behind[source]
        behind.append(mask)
        if mask & (mask - 1):  # where a parameter first meets other leaves
            for source in inputs[number]:
                rests_on.setdefault(behind[source], mask.bit_count())
    reached = {number: rank for rank, number in enumerate(_reached(graph, inputs))}
    found = sorted(names, key=lambda n: (rests_on.get(bits[n], 0), reached[n]))
    return [names[number] for number in found if nodes[number][0] in ("parameter", "frozen")]


def _reached(graph: Graph, inputs: list[list[int]]) -> Iterator[int]:
    """Nodes from the output on, an operator's arguments in their order."""
    stack, seen = [graph["output"][0]], set[int]()
    while stack:
        number = stack.pop()
        if number not in seen:
            seen.add(number)
            yield number
            stack += reversed(inputs[number])


def _fill(net: nn.Module, order: list[str]) -> None:
    """Draw every weight from its size and its rank, and reset running statistics."""
    for module in net.modules():
        if isinstance(module, _NormBase):
            module.reset_running_stats()
    tensors, ranks = state.tensors(net), Counter[int]()
    for name in order:
        weight = tensors[name].detach().as_subclass(torch.Tensor)
        size = weight.numel()
        ranks[size] += 1
        if sum(n > 1 for n in weight.shape) < 2:  # a scale or a bias
            weight.copy_(_uniform(weight.shape, size, ranks[size]) * math.sqrt(3))
            continue
        rows, columns, *kernel = weight.shape
        one = _uniform((rows, 1, *kernel), size, ranks[size])
        weight.copy_(one * (6 / columns / math.sqrt(math.prod(kernel))))


def _images(shape: tuple[int, ...]) -> torch.Tensor:
    """Noise on coarse patches of noise, so that averages over an image differ too."""
    channels, height, width = shape
    coarse = _uniform((_BATCH, channels, 4, 4), 1)
    patches = nn.functional.interpolate(coarse, size=(height, width))
    return 2 * (_uniform((_BATCH, *shape), 2) + patches + _uniform((_BATCH, channels, 1, 1), 3))


def _uniform(shape: tuple[int, ...], *key: int) -> torch.Tensor:
    """Numbers in -1..1 that depend only on shape and key, on every machine."""
    seed = 0
    for number in key:
        seed = (seed * 1_000_003 + number + 1) % 2**63
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(shape, generator=generator) * 2 - 1
