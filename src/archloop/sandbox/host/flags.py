"""Flags: warnings about an accuracy. They do not make a candidate invalid.

A run accepts no flagged candidate, unless ``selection.allow_flags`` names the flag.

=====================  ==========================================================================
``batch_dependent``    logits of an image change with the batch it is in
``stochastic``         logits change when the same batch is asked for twice
``brittle``            predictions change when pixels change by one step of 255
``changes_weights``    the forward pass in evaluation mode changed the weights
``no_steps``           no torch optimiser made a step
``untrained``          training left every parameter as it was
``state_lost``         rebuilt from its parameters and buffers it answers otherwise than it did when
                       trained: what was measured is not what was trained
``extra_passes``       more images passed ``forward()`` in training than the epoch has
``extra_work``         training took far more work than a plain epoch of the same network
``hidden_work``        the forward pass takes far longer than the operators traced
``knows_before``       better than chance before it was trained
``large_literals``     its source holds data: long texts, many numbers or long names
``trained_again``      the epoch failed in the faster layout or precision, and ran in the plain one
``late_training``      much of the time went by after the last batch was taken
``long_pause``         much of the time went by between two batches
``implausible``        more accurate than one epoch of a good network on this task
``protocol_gap``       its own ``learn()`` and the harness's loop disagree widely
``left_processes``     processes had to be killed after it
``refused_calls: ...`` system calls that the sandbox refused, by name
=====================  ==========================================================================
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from archloop.code.literals import literal_bytes

BATCH_DEPENDENT = "batch_dependent"
STOCHASTIC = "stochastic"
BRITTLE = "brittle"
CHANGES_WEIGHTS = "changes_weights"
NO_STEPS = "no_steps"
UNTRAINED = "untrained"
STATE_LOST = "state_lost"
EXTRA_PASSES = "extra_passes"
EXTRA_WORK = "extra_work"
HIDDEN_WORK = "hidden_work"
KNOWS_BEFORE = "knows_before"
LARGE_LITERALS = "large_literals"
TRAINED_AGAIN = "trained_again"
LATE_TRAINING = "late_training"
LONG_PAUSE = "long_pause"
IMPLAUSIBLE = "implausible"
PROTOCOL_GAP = "protocol_gap"
LEFT_PROCESSES = "left_processes"
REFUSED_CALLS = "refused_calls"

SAME = 0.02
"""Logits are the same when they differ by less than this share of their spread: batch size and
layout change the order of additions, and a GPU may round to ten bits of mantissa."""
MOST_CHANGED = 0.02
"""Share of predictions that rounding may change, where two classes are nearly equal."""
MOST_BRITTLE = 0.10
"""Share of predictions that may change under noise of one pixel step; a table of known images loses
them all, an honest network at one epoch about one in a hundred."""
BEGINNINGS = 5
"""Weights to begin with, with all of which a network must be above chance: one in ten untrained
networks is for some, if classes are few and differ in brightness."""
ABOVE_GUESSING = 0.1
"""Accuracy above guessing, as a share of what is left to one."""
MOST_LITERAL = 1_500
"""Bytes of data in a source. Of LEMUR's 10,422 networks of at most 64 Ki characters five have more,
of 2,340 generated ones none has more than 145."""
LONG_SHARE, LONG_SECONDS = 0.3, 1.0
"""Share of the training time, and a minimum in seconds."""
CEILINGS = {"cifar10": 0.85, "cifar100": 0.60, "svhn": 0.95, "mnist": 0.998}
"""Above the accuracy of tuned networks after one plain epoch (airbench needs several for 0.94 on
CIFAR-10; the paper's best is 0.64)."""
MOST_GAP = 0.15
"""Largest usual difference in accuracy between the two training modes."""


def of_process(left_processes: int, refused: Iterable[str]) -> tuple[str, ...]:
    """Flags of what was seen of a candidate's processes from outside.

    Args:
        left_processes: How many processes it left.
        refused: Names of refused system calls, in any order.
    """
    names = " ".join(sorted(set(refused)))
    left = (LEFT_PROCESSES,) if left_processes else ()
    return (*left, f"{REFUSED_CALLS}: {names}") if names else left


def merged(one: Iterable[str], other: Iterable[str]) -> tuple[str, ...]:
    """All flags, each once, with one for all refused calls."""
    found = dict.fromkeys((*one, *other))
    texts = [flag for flag in found if flag.startswith(REFUSED_CALLS)]
    names = [name for text in texts for name in text.partition(": ")[2].split()]
    return (*(flag for flag in found if flag not in texts), *of_process(0, names))


def same_logits(a: NDArray[np.float32], b: NDArray[np.float32]) -> bool:
    """Whether two answers (M, classes) to the same images are the same within rounding.

    Large logits must not hide a changed prediction: an offset common to all logits of an image is
    subtracted, the spread is that of the median image, and predictions are compared too.
    """
    one, other = (x - x.mean(axis=1, keepdims=True) for x in (a.astype(float), b.astype(float)))
    spread = float(np.median(one.std(axis=1))) or 1.0
    close = bool(np.abs(one - other).max(initial=0.0) <= SAME * spread)
    return close and changed_predictions(a, b) <= MOST_CHANGED


def changed_predictions(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """The share of images whose predicted class differs."""
    return float((a.argmax(axis=1) != b.argmax(axis=1)).mean())


def is_long(seconds: float, whole: float) -> bool:
    """Whether a time without a new batch is a large share of the training time, ``whole``."""
    return seconds > LONG_SECONDS and seconds > LONG_SHARE * whole


def lost_state(trained: object, rebuilt: object, classes: int) -> bool:
    """Whether two answers to the same noise, as candidates sent them, differ."""
    one, other = (_logits(text, classes) for text in (trained, rebuilt))
    if one is None or other is None or one.shape != other.shape:
        return False
    return not same_logits(one, other)


def _logits(text: object, classes: int) -> NDArray[np.float32] | None:
    try:
        raw = base64.b64decode(text, validate=True) if isinstance(text, str) else b""
        logits = np.frombuffer(raw, np.float32).reshape(-1, classes)
    except ValueError:
        return None
    return logits if logits.size and np.isfinite(logits).all() else None


def of_accuracy(task: str, accuracy: float, *, steps: int) -> list[str]:
    """Flags that follow from the accuracy."""
    found = []
    if steps == 0:
        found.append(NO_STEPS)
    if accuracy > CEILINGS.get(task, 1.0):
        found.append(IMPLAUSIBLE)
    return found


def above_chance(
    logits: NDArray[np.float32] | None, labels: NDArray[np.int64], relabel: Sequence[int]
) -> bool:
    """Whether untrained logits (A, classes) tell the classes, in their public numbers or its own.

    Guessing is to name the most frequent class.
    """
    if logits is None or not len(labels):
        return False
    guessed = float(np.bincount(labels).max() / len(labels))
    least = (
        guessed
        + ABOVE_GUESSING * (1 - guessed)
        + 3 * math.sqrt(guessed * (1 - guessed) / len(labels))
    )
    answers = logits.argmax(axis=1)
    return max(float((answers == n).mean()) for n in (labels, np.array(relabel)[labels])) > least


def of_source(code: str) -> list[str]:
    """Flags that follow from the source."""
    return [LARGE_LITERALS] if literal_bytes(code) > MOST_LITERAL else []
