"""What a network must not be able to predict of its measurement.

The order of the validation images, the sizes of the batches that they come in, which of them are
asked for again and the noise on them are drawn from a secret key, mixed with the network's source
and seed; no process that runs generated code has the key. None of it can change an honest score
beyond rounding. What can, the numbers that classes get, follows from the seed and the source alone,
so that a run can be repeated.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

AGAIN = 512
"""Images that are asked for again to find flags."""
_SMALLEST = 0.4
"""Share of the largest batch that the smallest one has."""
_OTHER_BATCH = 48
"""Images of the largest of the other batches: small, so that what a network takes from its batch
differs."""

Indices = NDArray[np.int64]


def new_key() -> bytes:
    """A secret that nobody can guess."""
    return secrets.token_bytes(32)


def relabelling(code: str, seed: int, classes: int) -> tuple[int, ...]:
    """The number that a network gets for each class, in place of the public one."""
    digest = hashlib.sha256(f"{seed}/{code}".encode("utf-8", "surrogatepass")).digest()
    rng = np.random.default_rng(int.from_bytes(digest))
    return tuple(int(n) for n in rng.permutation(classes))


@dataclass(frozen=True)
class Plan:
    """In which batches one network is asked for its logits; batches are indices of images."""

    batches: tuple[Indices, ...]
    """Every image once."""
    repeated: int
    """The position in ``batches`` of the one that is asked for again as it is."""
    chosen: Indices
    """(A,) images that are asked for again in other batches, and once more with noise."""
    others: tuple[Indices, ...]
    """The chosen ones in other batches; indices of ``chosen``."""
    noise: NDArray[np.int16]
    """(A, C, H, W), -1, 0 or 1 for each value."""
    order: Indices
    """The order of all later requests: the repeated batch, the other batches, those with noise."""
    first: Indices
    """Images that the untrained network is asked for."""


def draw_plan(
    key: bytes, code: str, seed: int, images: tuple[int, ...], largest: int, again: int = AGAIN
) -> Plan:
    """The plan of one evaluation: the same for the same arguments, unknown without the key.

    Args:
        key: The run's secret, 16 to 64 bytes.
        code: The network's source.
        seed: Of its training.
        images: (M, C, H, W), the shape of all validation images.
        largest: Images of the largest batch.
        again: Images asked for again, at most.
    """
    mixed = hashlib.blake2b(
        f"{seed}/{code}".encode("utf-8", "surrogatepass"), key=key, digest_size=32
    )
    rng = np.random.default_rng(int.from_bytes(mixed.digest()))
    n = images[0]
    batches = _split(rng, rng.permutation(n), largest)
    chosen = rng.permutation(n)[:again]
    others = _split(rng, rng.permutation(len(chosen)), min(_OTHER_BATCH, largest))
    return Plan(
        batches=batches,
        repeated=int(rng.integers(len(batches))),
        chosen=chosen,
        others=others,
        noise=rng.integers(-1, 2, (len(chosen), *images[1:]), np.int16),
        order=rng.permutation(1 + 2 * len(others)),
        first=rng.permutation(n)[:again],
    )


def _split(rng: np.random.Generator, indices: Indices, largest: int) -> tuple[Indices, ...]:
    """Consecutive batches of random sizes."""
    smallest, found, start = max(1, int(_SMALLEST * largest)), [], 0
    while start < len(indices):
        size = int(rng.integers(smallest, largest + 1))
        found.append(indices[start : start + size])
        start += size
    return tuple(found)
