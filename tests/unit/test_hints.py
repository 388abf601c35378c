"""Advice for the authors of networks."""

from __future__ import annotations

import pytest

from archloop.code.hints import hint, undeclared
from archloop.types import Outcome
from conftest import network


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
        ("AttributeError: 'TrainData' object has no attribute 'dataset'", "len(train_data)"),
        ("TypeError: 'TrainData' object is not subscriptable", "in_shape[0]"),
        ("UnknownHyperparameterError: no hyperparameter 'wd': ...", "prm.get(name, default)"),
        ("learn() trained on 9 images; ...: LBFGS.step() repeats its closure", "max_iter=1"),
        ("AttributeError: 'Net' object has no attribute 'prior'", "register_buffer"),
        ("ValueError: Attempted to use an uninitialized parameter in f", "in __init__"),
        ("forward() gave torch.float32 of shape (4, 7); expected ...", "out_shape[0]"),
    ],
)
def test_usual_faults_have_advice(error: str, said: str) -> None:
    advice = hint(Outcome.FORWARD_ERROR, error)
    assert advice is not None
    assert said in advice


def test_what_is_read_is_compared_with_what_is_declared() -> None:
    code = network().replace("momentum=prm['momentum']", "momentum=prm['dropout'] + prm['batch']")
    assert undeclared(network()) == []
    assert undeclared(code) == ["dropout"]
    advice = hint(Outcome.VALID, None, (), code)
    assert advice is not None
    assert advice.startswith("it reads dropout, which supported_hyperparameters() does not name")
    assert hint(Outcome.VALID, None, (), network()) is None


def test_a_sound_network_has_none() -> None:
    assert hint(Outcome.VALID, None) is None
    assert hint(Outcome.IMPORT_ERROR, "KeyError: 'x'") is None
    flagged = hint(Outcome.VALID, None, ["untrained", "no_steps"])
    assert flagged is not None
    assert "every batch once" in flagged, "the cause before its effect"
    lost = hint(Outcome.VALID, None, ["state_lost"])
    assert lost is not None
    assert "register_buffer" in lost
    flagged = hint(Outcome.VALID, None, ["brittle", "batch_dependent"])
    assert flagged is not None
    assert "batch" in flagged
    refused = hint(Outcome.VALID, None, ["refused_calls: inotify_init1"])
    assert refused is not None
    assert "asked the system" in refused
