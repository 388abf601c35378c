"""Which GPU a candidate gets; no GPU is needed to know."""

from __future__ import annotations

import os

import pytest

from archloop.sandbox.host.gpus import Gpus, show_only


def test_each_candidate_gets_the_gpu_with_the_fewest() -> None:
    gpus = Gpus(3)
    assert [gpus.take() for _ in range(5)] == [0, 1, 2, 0, 1]
    gpus.give_back(1)
    gpus.give_back(1)
    assert [gpus.take() for _ in range(3)] == [1, 1, 2]


def test_without_a_gpu_there_is_none_to_lend() -> None:
    gpus = Gpus(0)
    assert gpus.take() is None
    gpus.give_back(None)


@pytest.mark.parametrize(
    ("named", "gpu", "shown"),
    [
        (None, 2, "2"),
        ("3, GPU-8f", 1, "GPU-8f"),
        ("3,1", 0, "3"),
        ("3,1", None, ""),
        (None, None, ""),
    ],
)
def test_a_candidate_sees_its_gpu_alone(
    monkeypatch: pytest.MonkeyPatch, named: str | None, gpu: int | None, shown: str
) -> None:
    if named is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    show_only(gpu)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == shown
