"""Advice for the author of a network, for the usual faults and flags."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable

from archloop.code.policy import parse
from archloop.types import Outcome, Verdict

_CONTRACT = (
    "define supported_hyperparameters() and class Net(nn.Module) with __init__(self, in_shape, "
    "out_shape, prm, device), forward(self, x), train_setup(self, prm) and learn(self, train_data)"
)

_OF_ERRORS = tuple(
    (re.compile(pattern), text)
    for pattern, text in (
        (
            r"mat1 and mat2 shapes cannot be multiplied",
            "in_features of that Linear must be what flatten gives: put nn.AdaptiveAvgPool2d "
            "before it, or measure it with a batch of zeros in __init__",
        ),
        (
            r"to have \d+ channels, but got \d+",
            "channels do not follow: the images have in_shape[1] of them, as in_shape is "
            "(N, C, H, W), and every layer takes what the one before it gives",
        ),
        (
            r"name '(?:torch|nn|F|math|np)' is not defined",
            "import what is used at the top of the file, for example import torch.nn as nn",
        ),
        (
            r"'TrainData' object",
            "train_data gives (inputs, labels) batches, each once, and nothing besides: "
            "len(train_data) is their number, in_shape[0] the images in a batch (the last may have "
            "fewer), inputs.size(0) counts those that came; there is no dataset, batch_size, "
            "sampler or index",
        ),
        (
            r"UnknownHyperparameterError",
            "use those that are given, or prm.get(name, default) for one of your own",
        ),
        (
            r"repeats its closure",
            "an image may pass twice for a step (as in SAM), and LBFGS runs its closure up to "
            "max_iter times: set max_iter=1, or use another optimiser",
        ),
        (
            r"object has no attribute",
            "set in __init__ what forward() and learn() use; a tensor that learn() makes is kept "
            "by self.register_buffer(name, tensor) in __init__",
        ),
        (
            r"an uninitialized parameter",
            "a lazy layer has no weights before the first forward pass: run a batch of zeros "
            "through it in __init__ before its weights are counted, copied or initialised",
        ),
        (r"encoded as|is not UTF-8|unknown encoding", "save the file as UTF-8"),
        (
            r"Sizes of tensors must match|must match the size of tensor",
            "both branches must have the same shape where they meet: stride, padding, channels",
        ),
        (
            r"view size is not compatible",
            "use .reshape() or torch.flatten(x, 1) in place of .view()",
        ),
        (
            r"Output size is too small|Kernel size can't be greater",
            "too many poolings or strides for images of this size: leave some out or pad",
        ),
        (
            r"Expected more than 1 value per channel",
            "BatchNorm needs more than one value a channel: do not pool to 1x1 before it",
        ),
        (r"learn\(\) took \d+ of", "loop over train_data to its end, once"),
        (r"built anew it", "make all layers in __init__, none in learn()"),
    )
)

_OF_OUTCOMES = {
    Outcome.CONTRACT_VIOLATION: _CONTRACT,
    Outcome.FORBIDDEN_CODE: "leave it out: a network needs torch, numpy and plain Python",
    Outcome.OVER_BUDGET: "use fewer or narrower layers, or pool before the first Linear",
    Outcome.FORWARD_ERROR: "forward(x) gives float logits of shape (N, out_shape[0])",
    Outcome.NON_FINITE: "add normalisation, clip gradients or check the loss",
    Outcome.PROTOCOL_VIOLATION: "take every batch once and make one optimiser step for it",
    Outcome.TIMEOUT: "make it smaller, or allow more with --set sandbox.train_seconds=S",
    Outcome.OUT_OF_MEMORY: "make it smaller, or allow more with --set sandbox.memory_mb=N",
    Outcome.SANDBOX_VIOLATION: "a network may not touch files, programs, processes or the network",
}

_ALWAYS_GIVEN = ("batch", "epoch", "transform")
"""Also in LEMUR, to a network that does not name them."""

_OF_FLAGS = {
    # The first that a network has is advised on.
    "stochastic": "it is random in evaluation mode: pass training=self.training to F.dropout",
    "batch_dependent": "its logits depend on the batch: batch statistics in evaluation mode?",
    "no_steps": "no torch optimiser made a step: train_data gives every batch once, so a second "
    "loop over it gets none; call optimizer.step() for each batch",
    "untrained": "training left every parameter as it was: give the optimiser self.parameters(), "
    "a rate above zero, and call loss.backward() before optimizer.step()",
    "state_lost": "what was measured is not what was trained: what learn() puts into plain "
    "attributes or globals is lost when the network is rebuilt from its state_dict(); make it in "
    "__init__ by self.register_buffer(name, tensor) or nn.Parameter, and change it in place",
    "extra_work": "train on each batch once: extra work is seen by its processor time",
    "large_literals": "weights and data do not belong into the source",
    "trained_again": "its forward() or backward pass fails in the channels-last layout or in bf16",
    "refused_calls": "it asked the system for what a network has no use for: leave that out",
    "protocol_gap": "its own learn() and the harness's loop give far apart accuracies",
}


def hint(
    outcome: Outcome, error: str | None, flags: Iterable[str] = (), code: str = ""
) -> str | None:
    """One line of advice; ``None``: there is none.

    Args:
        outcome: The outcome of the network.
        error: Its error line.
        flags: Of a valid network.
        code: Its source.
    """
    for pattern, text in _OF_ERRORS:
        if error and pattern.search(error):
            return text
    if outcome in _OF_OUTCOMES:
        return _OF_OUTCOMES[outcome]
    found = {flag.partition(":")[0] for flag in flags}
    advice = next((text for flag, text in _OF_FLAGS.items() if flag in found), None)
    if advice is None and (names := undeclared(code)):
        return (
            f"it reads {', '.join(names)}, which supported_hyperparameters() does not name: LEMUR "
            "gives a network only what it names"
        )
    return advice


def undeclared(code: str) -> list[str]:
    """Hyperparameters that a source reads as ``prm["name"]`` and does not declare, sorted."""
    if "prm[" not in code or isinstance(tree := parse(code), Verdict):
        return []
    declared, read = set(_ALWAYS_GIVEN), set[str]()
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name="supported_hyperparameters"):
                constants = (n for n in ast.walk(node) if isinstance(n, ast.Constant))
                declared |= {n.value for n in constants if isinstance(n.value, str)}
            case ast.Subscript(
                value=ast.Name(id="prm") | ast.Attribute(attr="prm"),
                slice=ast.Constant(value=str(name)),
                ctx=ast.Load(),
            ):
                read.add(name)
            case _:
                pass
    return sorted(read - declared)
