from __future__ import annotations

import pytest

from archloop.config import PromptConfig
from archloop.errors import ConfigError
from archloop.search.prompts import CIFAR10, PromptSubject, PromptTemplate, parameter_cap


def test_the_prompt_says_what_the_paper_says() -> None:
    """Word for word: with another text the packaged adapter and older runs do not compare."""
    assert PromptTemplate().render(CIFAR10, 500_000) == [
        {
            "role": "system",
            "content": "You are an expert PyTorch architecture designer. "
            "Maximise first-epoch accuracy.",
        },
        {
            "role": "user",
            "content": "Dataset: CIFAR-10. Input: (N, 3, 32, 32). Output: (N, 10) logits. "
            "At most 500,000 parameters.\n"
            "Write class Net(nn.Module) with __init__(self, in_shape, out_shape, prm, device), "
            "forward(self, x), train_setup(self, prm), learn(self, train_data), and a function "
            "supported_hyperparameters() returning {'lr', 'momentum'}. Import torch and torch.nn "
            "as nn. Standard layers only, no pretrained weights, no data loading. "
            "Answer with one Python code block.",
        },
    ]


def test_the_subject_reaches_the_prompt() -> None:
    template = PromptTemplate("sys", "{classes}|{dataset}|{max_params}|{shape}|{other} {'lr'}")
    system, user = template.render(PromptSubject("Digits", (1, 8, 8), 3), 1_000)
    assert system["content"] == "sys"
    assert user["content"] == "3|Digits|1,000|(N, 1, 8, 8)|{other} {'lr'}"


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
