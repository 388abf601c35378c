"""Which pairs of the corpus a fine-tune sees, and how often.

With ``selection.weighting = "accuracy"`` a pair's weight is the sixteenth power of its first-epoch
accuracy, so that a network at 55 % counts nearly five times one at 50 %; a pair whose accuracy
nobody measured counts like the median one.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Collection, Sequence
from typing import Literal

from archloop.types import ChatPair

_POWER = 16
Weighting = Literal["none", "accuracy"]


def whole_corpus(
    corpus: Sequence[ChatPair], weighting: Weighting, rng: random.Random
) -> list[ChatPair]:
    """What a fine-tune from the base LLM sees: everything once, or as many drawn by weight."""
    if weighting == "none" or not corpus:
        return list(corpus)
    return rng.choices(corpus, _weights(corpus, weighting), k=len(corpus))


def new_and_replayed(
    corpus: Sequence[ChatPair],
    newest: Collection[int],
    *,
    replay: int,
    replay_seeds: int | None,
    weighting: Weighting,
    rng: random.Random,
) -> list[ChatPair]:
    """What going on from the last adapter sees: the newest pairs once, and a sample of the others.

    Args:
        corpus: Everything so far.
        newest: The cycles whose accepted networks are new; without any, the result is empty.
        replay: Size of the sample.
        replay_seeds: Most seeds in it; ``None``: as many as it happens to hold.
        weighting: How the sample is drawn.
        rng: The random stream.
    """
    new = [p for p in corpus if p.meta.get("cycle") in newest]
    if not new:
        return []
    older = [p for p in corpus if p.meta.get("cycle") not in newest]
    if replay_seeds is None:
        return new + sample(older, replay, weighting, rng)
    seeds = [p for p in older if not p.meta.get("generated")]
    accepted = [p for p in older if p.meta.get("generated")]
    kept = sample(seeds, min(replay_seeds, replay), weighting, rng)
    return new + sample(accepted, replay - len(kept), weighting, rng) + kept


def sample(
    pairs: Sequence[ChatPair], most: int, weighting: Weighting, rng: random.Random
) -> list[ChatPair]:
    """Up to ``most`` different pairs, in the order of the draw (Efraimidis and Spirakis, 2006)."""
    weights = _weights(pairs, weighting)
    # The logarithm of u ** (1 / weight): that power itself is 0 for small weights.
    keys = [math.log(1.0 - rng.random()) / weight for weight in weights]
    order = sorted(range(len(pairs)), key=lambda i: -keys[i])
    return [pairs[i] for i in order[:most]]


def _weights(pairs: Sequence[ChatPair], weighting: Weighting) -> list[float]:
    if weighting == "none":
        return [1.0] * len(pairs)
    known = [pair.first_epoch_accuracy for pair in pairs]
    usual = statistics.median([a for a in known if a is not None] or [1.0])
    return [max(usual if a is None else a, 0.01) ** _POWER for a in known]
