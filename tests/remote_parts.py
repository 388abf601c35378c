"""What the tests of the ``openai`` engine share."""

from __future__ import annotations

from typing import Any

from archloop.code.chat import render_code
from archloop.config import RunConfig, resolve
from archloop.llm.generation import Generator, build_generator
from archloop.llm.spending import Budget, Spent
from archloop.types import Completion, Message, Request
from conftest import network
from scripted_server import Reply, chat

PROMPT: tuple[Message, ...] = ({"role": "user", "content": "Name a colour."},)
KEY, VARIABLE = "sk-archloop-test-4b1d", "ARCHLOOP_TEST_API_KEY"


def engine(
    url: str, model: str = "m", spent: Spent | None = None, **settings: Any
) -> tuple[Generator, Budget]:
    decoding = {"top_k": 0, "top_p": 1.0, "max_new_tokens": 12} | settings.pop("decoding", {})
    config = resolve(
        {
            "llm": {"model": model},
            "generation": {"engine": "openai", **decoding},
            "openai": {"base_url": url, **settings},
            "finetune": {"enabled": False},
        }
    )
    budget = Budget(config.openai, spent or Spent())
    generator = build_generator(config, budget=budget)
    generator.use(None)
    return generator, budget


def request(
    index: int,
    seed: int,
    messages: tuple[Message, ...] = PROMPT,
    temperature: float = 1.0,
) -> Request:
    return Request(1, index, seed, "digits", messages, temperature)


def requests(n: int, temperature: float = 1.0) -> list[Request]:
    return [request(index, 100 + index, temperature=temperature) for index in range(n)]


def by_index(texts: list[Completion]) -> list[Completion]:
    return sorted(texts, key=lambda text: text.index)


def loop_config(url: str, *, model: str = "m", **changes: Any) -> RunConfig:
    openai = {"base_url": url, "concurrency": 2} | changes.pop("openai", {})
    return resolve(
        {
            "llm": {"model": model},
            "seeds": {"source": "none"},
            "prompt": {"user": "{dataset} {shape} {classes} {max_params}"},
            "generation": {
                "engine": "openai",
                "top_k": 0,
                "max_new_tokens": changes.pop("max_new_tokens", 100),
            },
            "openai": openai,
            "task": {"name": "digits", "image_size": 16, "max_params": 100_000},
            "protocol": {"augmentation": "none", "lr": 0.05, "train_images": 600},
            "selection": {"min_accuracy": 0.01},
            "finetune": {"enabled": False},
            "loop": {"cycles": 1, "completions": changes.pop("completions", 6)},
        }
    )


def good_answer(_n: int, body: dict[str, Any]) -> Reply:
    """A network of its own for each seed."""
    own = "; ".join(f"self.s{body['seed']}x{i} = {i}" for i in range(40))
    return chat(render_code(network(init=own)), prompt_tokens=300, tokens=80)
