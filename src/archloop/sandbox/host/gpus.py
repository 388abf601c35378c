"""Assignment of candidates to GPUs."""

from __future__ import annotations

import os


class Gpus:
    """Assigns candidates to the least used GPU.

    Args:
        n: How many there are; without one, candidates compute on the processor.
    """

    def __init__(self, n: int) -> None:
        self._lent = [0] * n

    def take(self) -> int | None:
        """Take the GPU with the fewest candidates; ``None``: there is no GPU."""
        if not self._lent:
            return None
        gpu = self._lent.index(min(self._lent))
        self._lent[gpu] += 1
        return gpu

    def give_back(self, gpu: int | None) -> None:
        """Release the GPU of a candidate."""
        if gpu is not None:
            self._lent[gpu] -= 1


def show_only(gpu: int | None) -> None:
    """Hide all other GPUs, or all, from this process; call before CUDA is initialised.

    Args:
        gpu: Its index among the GPUs of ``CUDA_VISIBLE_DEVICES``, if that is set, else of all.
    """
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if gpu is None:
        shown = ""
    elif named:
        shown = named.split(",")[gpu].strip()
    else:
        shown = str(gpu)
    os.environ["CUDA_VISIBLE_DEVICES"] = shown
