"""Advice for the authors of networks."""

from __future__ import annotations

import pytest

from archloop.code.hints import hint
from archloop.types import Outcome


@pytest.mark.parametrize(
    ("error", "said"),
    [
        ("RuntimeError: mat1 and mat2 shapes cannot be multiplied (4x3072 and 3x4)", "in_features"),
        (
            "RuntimeError: Given groups=1, weight of size [8, 1, 3, 3], expected input[4, 3, 32, "
            "32] to have 1 channels, but got 3 channels instead",
            "in_shape[1]",
        ),
        ("NameError: name 'nn' is not defined (line 8)", "import torch.nn as nn"),
        ("AttributeError: 'Net' object has no attribute 'conv9'", "__init__"),
        ("forward() gave torch.float32 of shape (4, 7); expected ...", "out_shape[0]"),
    ],
)
def test_usual_faults_have_advice(error: str, said: str) -> None:
    advice = hint(Outcome.FORWARD_ERROR, error)
    assert advice is not None
    assert said in advice


def test_a_sound_network_has_none() -> None:
    assert hint(Outcome.VALID, None) is None
    assert hint(Outcome.IMPORT_ERROR, "KeyError: 'x'") is None
    flagged = hint(Outcome.VALID, None, ["brittle", "batch_dependent"])
    assert flagged is not None
    assert "batch" in flagged
    refused = hint(Outcome.VALID, None, ["refused_calls: inotify_init1"])
    assert refused is not None
    assert "asked the system" in refused
