"""Advice for the author of a network, for the usual faults and flags."""

from __future__ import annotations

import re
from collections.abc import Iterable

from archloop.types import Outcome

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
        (r"object has no attribute", "set in __init__ what forward() and learn() use"),
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
    Outcome.FORBIDDEN_CODE: "a network needs torch, numpy and pure Python only",
    Outcome.OVER_BUDGET: "use fewer or narrower layers, or pool before the first Linear",
    Outcome.FORWARD_ERROR: "forward(x) gives float logits of shape (N, out_shape[0])",
    Outcome.NON_FINITE: "add normalisation, clip gradients or check the loss",
    Outcome.PROTOCOL_VIOLATION: "take every batch once and make one optimiser step for it",
    Outcome.TIMEOUT: "make it smaller, or allow more with --set sandbox.train_seconds=S",
    Outcome.OUT_OF_MEMORY: "make it smaller, or allow more with --set sandbox.memory_mb=N",
    Outcome.SANDBOX_VIOLATION: "a network may not touch files, programs, processes or the network",
}

_OF_FLAGS = {
    "stochastic": "it is random in evaluation mode: pass training=self.training to F.dropout",
    "batch_dependent": "its logits depend on the batch: batch statistics in evaluation mode?",
    "no_steps": "no torch optimiser made a step",
    "refused_calls": "it asked the system for what a network has no use for: leave that out",
    "protocol_gap": "its own learn() and the harness's loop give far apart accuracies",
}


def hint(outcome: Outcome, error: str | None, flags: Iterable[str] = ()) -> str | None:
    """One line of advice; ``None``: there is none.

    Args:
        outcome: The outcome of the network.
        error: Its error line.
        flags: Of a valid network.
    """
    for pattern, text in _OF_ERRORS:
        if error and pattern.search(error):
            return text
    if outcome in _OF_OUTCOMES:
        return _OF_OUTCOMES[outcome]
    kinds = (flag.partition(":")[0] for flag in flags)
    return next((_OF_FLAGS[kind] for kind in kinds if kind in _OF_FLAGS), None)
