"""The prompt template: one fixed text for a whole run, filled from the task and the budget.

Written after the paper (sections 3 and 3.1): expert designer, first-epoch accuracy, dataset and
shapes, at most so many parameters, the contract, standard layers only, no pretrained weights, one
code block.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from archloop.code.chat import render_code
from archloop.config import PromptConfig
from archloop.errors import ConfigError
from archloop.types import Message

SYSTEM = "You are an expert PyTorch architecture designer. Maximise first-epoch accuracy."
USER = (
    "Dataset: {dataset}. Input: {shape}. Output: (N, {classes}) logits. "
    "At most {max_params} parameters.\n"
    "Write class Net(nn.Module) with __init__(self, in_shape, out_shape, prm, device), "
    "forward(self, x), train_setup(self, prm), learn(self, train_data), and a function "
    "supported_hyperparameters() returning {'lr', 'momentum'}. Import torch and torch.nn as nn. "
    "Standard layers only, no pretrained weights, no data loading. "
    "Answer with one Python code block."
)
_FIELDS = ("dataset", "shape", "classes", "max_params")
STRUCTURE = "{structure}"
"""Placeholder of a template for the structure class that is asked for; it may be left out."""
ANY = "any"
"""What stands there when none is asked for."""


@dataclass(frozen=True)
class PromptSubject:
    """What a prompt says about the task."""

    dataset: str
    shape: tuple[int, int, int]
    """(channels, height, width)."""
    classes: int


CIFAR10 = PromptSubject("CIFAR-10", (3, 32, 32), 10)
MNIST = PromptSubject("MNIST", (1, 28, 28), 10)


@dataclass(frozen=True)
class PromptTemplate:
    """A system and a user text; the user's has the placeholders of :data:`_FIELDS` in braces.

    It may have :data:`STRUCTURE` too.
    """

    system: str = SYSTEM
    user: str = USER

    @classmethod
    def from_config(cls, config: PromptConfig) -> PromptTemplate:
        """The configured texts, or the packaged ones where empty.

        Raises:
            ConfigError: A custom user text lacks a placeholder, so the task would not reach the
            LLM.
        """
        template = cls(config.system or SYSTEM, config.user or USER)
        missing = [f"{{{name}}}" for name in _FIELDS if f"{{{name}}}" not in template.user]
        if missing:
            raise ConfigError(f"prompt.user: lacks {', '.join(missing)}")
        return template

    @property
    def digest(self) -> str:
        """First 12 hex digits of the template's SHA-256."""
        return hashlib.sha256(f"{self.system}\0{self.user}".encode()).hexdigest()[:12]

    @property
    def asks_structure(self) -> bool:
        """Whether it has a place for a structure class."""
        return STRUCTURE in self.user

    def render(
        self, subject: PromptSubject, max_params: int, structure: str | None = None
    ) -> list[Message]:
        """The system and user message for one task and budget.

        Args:
            subject: The task.
            max_params: Parameter budget.
            structure: Structure class that is asked for, such as ``skip+gate``, where the template
                has a place for it; ``None``: any.
        """
        c, h, w = subject.shape
        values = {
            "dataset": subject.dataset,
            "shape": f"(N, {c}, {h}, {w})",
            "classes": str(subject.classes),
            "max_params": f"{max_params:,}",
            "structure": (structure or ANY).replace("+", ", "),
        }
        pattern = re.compile("{(" + "|".join(values) + ")}")
        user = pattern.sub(lambda match: values[match[1]], self.user)
        return [{"role": "system", "content": self.system}, {"role": "user", "content": user}]

    def render_edit(
        self,
        subject: PromptSubject,
        max_params: int,
        structure: str | None,
        *,
        instruction: str,
        code: str,
    ) -> list[Message]:
        """The prompt for a change of a network: what is asked for, the instruction, the network.

        Args:
            subject: The task.
            max_params: Parameter budget of the changed network.
            structure: Structure class of the changed network, as in :meth:`render`.
            instruction: What to change, as a sentence.
            code: The network to change.
        """
        system, user = self.render(subject, max_params, structure)
        text = f"{user['content']}\n{instruction}\n{render_code(code)}"
        return [system, {"role": "user", "content": text}]


def parameter_cap(n_params: int) -> int:
    """The budget a prompt names: ``n_params`` rounded up in steps of 1, 2, 5 x 10^k.

    >>> [parameter_cap(n) for n in (180_000, 200_000, 200_001, 4_100_000)]
    [200000, 200000, 500000, 5000000]
    """
    step = 1
    while True:
        for digit in (1, 2, 5):
            if n_params <= digit * step:
                return digit * step
        step *= 10
