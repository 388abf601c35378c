"""Which GPU a candidate gets, where there are several."""

from __future__ import annotations

import os


class Gpus:
    """Lends each GPU to as few candidates at a time as can be.

    Args:
        n: How many there are; without one, candidates compute on the processor.
    """

    def __init__(self, n: int) -> None:
        self._lent = [0] * n

    def take(self) -> int | None:
        """The one with the fewest candidates now, the first of several; none of none."""
        if not self._lent:
            return None
        gpu = self._lent.index(min(self._lent))
        self._lent[gpu] += 1
        return gpu

    def give_back(self, gpu: int | None) -> None:
        """A candidate is done with it."""
        if gpu is not None:
            self._lent[gpu] -= 1


def show_only(gpu: int | None) -> None:
    """Hide all other GPUs, or all, from this process; before CUDA starts in it.

    Args:
        gpu: Counted among those that ``CUDA_VISIBLE_DEVICES`` names, where it names any.
    """
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if gpu is None:
        shown = ""
    elif named:
        shown = named.split(",")[gpu].strip()
    else:
        shown = str(gpu)
    os.environ["CUDA_VISIBLE_DEVICES"] = shown
