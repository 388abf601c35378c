"""Tokens a second of every installed engine, beside plain ``transformers.generate``.

All sample the same number of completions of the run's prompt with the same adapter, decoding and
type; the plain way is what its documentation shows: a left-padded batch and ``generate``, the
adapter merged. Each way has a process of its own, which loads and then waits for its turn: the ways take
turns, so that what else the machine does meets all of them. Only the sampling is timed, and tokens
after a sequence's end do not count. ``python -m benchmarks.generation --engines openvino --tokens 256``
takes less time.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from archloop.config import load_config
from archloop.config.derived import derive_seed
from archloop.config.engines import ENGINES
from archloop.llm.generation import build_generator
from archloop.llm.models import resolve_adapter, resolve_model
from archloop.machine.hardware import on_this_machine
from archloop.search.prompts import CIFAR10, PromptTemplate
from archloop.types import Message, Request
from benchmarks.table import Row

REPETITIONS = 3
GOALS = {"openvino": 6.0}

Sample = Callable[[int], int]
"""Sample all completions of a repetition; how many tokens they have."""


class Size(NamedTuple):
    """How much a repetition samples."""

    sequences: int
    max_new_tokens: int


WHOLE = Size(16, 512)


class Rate(NamedTuple):
    """One repetition."""

    tokens: int
    seconds: float

    @property
    def per_second(self) -> float:
        """Tokens a second."""
        return self.tokens / self.seconds


def _setup() -> tuple[Any, list[Message]]:
    config = on_this_machine(load_config("embedded"))
    template = PromptTemplate.from_config(config.prompt)
    return config, template.render(CIFAR10, config.task.max_params)


def plain(size: Size) -> Sample:
    """As a user of transformers would write it."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    config, messages = _setup()
    folder = resolve_model(config.llm)
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    tokenizer.pad_token = tokenizer.eos_token
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=config.llm.dtype)
    adapter = resolve_adapter(config.llm.warm_start)
    model = PeftModel.from_pretrained(model, adapter).merge_and_unload().eval()
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    inputs = tokenizer.apply_chat_template(
        [messages] * size.sequences,
        add_generation_prompt=True,
        padding=True,
        return_tensors="pt",
        return_dict=True,
    ).to(model.device)
    length = inputs["input_ids"].shape[1]

    def sample(repetition: int) -> int:
        torch.manual_seed(repetition)
        out = model.generate(
            **inputs,
            do_sample=True,
            temperature=config.generation.temperature,
            top_k=config.generation.top_k,
            top_p=config.generation.top_p,
            max_new_tokens=size.max_new_tokens,
            pad_token_id=tokenizer.eos_token_id,
        )
        rows = (out[:, length:] == tokenizer.eos_token_id).tolist()
        return sum(row.index(True) + 1 if True in row else len(row) for row in rows)

    return sample


def ours(engine: str, size: Size) -> Sample:
    """An engine as a run uses it."""
    config, messages = _setup()

    decoding = {
        "engine": engine,
        "batch_size": size.sequences,
        "max_new_tokens": size.max_new_tokens,
    }
    decoded = config.generation.model_copy(update=decoding)
    config = config.model_copy(update={"generation": decoded})
    generator = build_generator(config, model_dir=resolve_model(config.llm))
    generator.use(resolve_adapter(config.llm.warm_start))

    def sample(repetition: int) -> int:
        prompt, temperature = tuple(messages), decoded.temperature
        requests = [
            Request(1, i, derive_seed(repetition, i), "cifar10", prompt, temperature)
            for i in range(size.sequences)
        ]
        return sum(text.n_tokens for text in generator.generate(requests))

    return sample


def _contest(way: str, size: Size, pipe: Connection) -> None:
    """Load, then sample whenever told to, until the other end is closed."""
    sample = plain(size) if way == "plain" else ours(way, size)
    pipe.send("ready")
    with contextlib.suppress(EOFError):
        while True:
            repetition = pipe.recv()
            started = time.perf_counter()
            tokens = sample(repetition)
            pipe.send(Rate(tokens, time.perf_counter() - started))


def measure(ways: list[str], size: Size, repetitions: int) -> dict[str, list[Rate]]:
    """Every way in turn, ``repetitions`` times."""
    context = multiprocessing.get_context("spawn")
    pipes: dict[str, Connection] = {}
    rates: dict[str, list[Rate]] = {way: [] for way in ways}
    try:
        for way in ways:
            pipes[way], theirs = context.Pipe()
            # No daemon: vLLM starts a process of its own.
            context.Process(target=_contest, args=(way, size, theirs)).start()
            theirs.close()
            assert pipes[way].recv() == "ready"
        for repetition in range(1, repetitions + 1):
            for way in ways:
                pipes[way].send(repetition)
                rates[way].append(pipes[way].recv())
    finally:
        for pipe in pipes.values():
            pipe.close()
    return rates


def installed() -> list[str]:
    """The engines that can run here and sample themselves."""
    import torch

    found = ["transformers"]
    found += ["openvino"] if find_spec(ENGINES["openvino"].module or "") else []
    if find_spec("vllm") and torch.cuda.is_available():
        found.append("vllm")
    return found


def all_rows(
    size: Size = WHOLE, engines: list[str] | None = None, repetitions: int = REPETITIONS
) -> Iterator[Row]:
    """A row for each engine; ``None``: all that can run here."""
    engines = engines or installed()
    rates = measure(["plain", *engines], size, repetitions)
    beside = rates["plain"]
    for engine in engines:
        ratios = [a.per_second / b.per_second for a, b in zip(rates[engine], beside, strict=True)]
        yield Row(
            f"generation, `{engine}`, {size.sequences} sequences of at most "
            f"{size.max_new_tokens} tokens",
            f"{_spread(rates[engine])}; ratios {', '.join(f'{r:.1f}' for r in ratios)}",
            f"`transformers.generate` {_spread(beside)}",
            statistics.median(ratios),
            GOALS.get(engine),
        )


def _spread(rates: list[Rate]) -> str:
    each = [rate.per_second for rate in rates]
    tokens = statistics.fmean(rate.tokens for rate in rates)
    return (
        f"{statistics.median(each):.0f} tokens/s (median of {len(each)}, {min(each):.0f} to "
        f"{max(each):.0f}; {tokens:,.0f} tokens each)"
    )


def main() -> None:
    """Measure as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sequences", type=int, default=WHOLE.sequences)
    parser.add_argument("--tokens", type=int, default=WHOLE.max_new_tokens)
    parser.add_argument("--repetitions", type=int, default=REPETITIONS)
    parser.add_argument("--engines", nargs="+", choices=installed())
    given = parser.parse_args()
    size = Size(given.sequences, given.tokens)
    for row in all_rows(size, given.engines, given.repetitions):
        print(row.markdown(), flush=True)


if __name__ == "__main__":
    main()
