from __future__ import annotations

import pytest

from archloop.config import PromptConfig
from archloop.errors import ConfigError
from archloop.search.prompts import CIFAR10, PromptSubject, PromptTemplate, parameter_cap


def test_the_prompt_says_what_the_paper_says() -> None:
    system, user = PromptTemplate().render(CIFAR10, 500_000)
    assert "expert PyTorch" in system["content"]
    assert "first-epoch accuracy" in system["content"]
    for fact in (
        "CIFAR-10",
        "(N, 3, 32, 32)",
        "(N, 10)",
        "500,000",
        "train_setup(self, prm)",
        "learn(self, train_data)",
        "__init__(self, in_shape, out_shape, prm, device)",
        "supported_hyperparameters()",
        "{'lr', 'momentum'}",
        "no pretrained weights",
        "one Python code block",
    ):
        assert fact in user["content"]
    assert "{dataset}" not in user["content"]


def test_the_subject_reaches_the_prompt() -> None:
    user = PromptTemplate().render(PromptSubject("Digits", (1, 8, 8), 3), 1_000)[1]["content"]
    assert "Digits" in user
    assert "(N, 1, 8, 8)" in user
    assert "(N, 3)" in user
    assert "1,000" in user


def test_a_changed_template_has_another_digest() -> None:
    assert PromptTemplate().digest == PromptTemplate().digest
    assert PromptTemplate(system="x").digest != PromptTemplate().digest


def test_a_custom_template_must_name_the_task() -> None:
    with pytest.raises(ConfigError, match=r"\{max_params\}"):
        PromptTemplate.from_config(PromptConfig(user="{dataset} {shape} {classes}"))


@pytest.mark.parametrize(
    ("n_params", "cap"), [(1, 1), (180_000, 200_000), (200_001, 500_000), (500_001, 1_000_000)]
)
def test_the_cap_is_rounded_up(n_params: int, cap: int) -> None:
    assert parameter_cap(n_params) == cap
