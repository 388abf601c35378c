"""Seconds from asking for a completion to having the first: what a session that stays saves.

Four cases with the embedded LLM: a session's first use, a second use with another adapter, one with
the same adapter (the next batch of ``loop.valid_target``), and a process for each use. The first
completion is one greedy token long, so that loading is nearly all that is timed. ``python -m
benchmarks.session --engine openvino``; also told is the memory that the session holds.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from archloop.config import RunConfig, load_config
from archloop.llm.generation.session import GeneratorSession
from archloop.llm.models import resolve_adapter, resolve_model
from archloop.search.prompts import CIFAR10, PromptTemplate
from archloop.types import Request

GIB = 2**30


def _request(config: RunConfig) -> Request:
    messages = PromptTemplate.from_config(config.prompt).render(CIFAR10, config.task.max_params)
    return Request(1, 0, 0, "cifar10", tuple(messages), 0.0)


def _seconds(session: GeneratorSession, request: Request, adapter: Path) -> float:
    begin = time.perf_counter()
    answers = list(session.generate([[request]], adapter))
    assert len(answers) == 1
    return time.perf_counter() - begin


def measure(engine: str, repetitions: int) -> tuple[dict[str, list[float]], float]:
    """Seconds of each case, and the GiB that the session holds after its last use."""
    decoding = [f"generation.engine={engine}", "generation.max_new_tokens=1"]
    config = load_config("embedded", decoding)
    model_dir, request = resolve_model(config.llm), _request(config)
    adapter = resolve_adapter(config.llm.warm_start or "")
    found: dict[str, list[float]] = {
        "first use": [],
        "another adapter": [],
        "the same adapter": [],
        "a process for each use": [],
    }
    with tempfile.TemporaryDirectory() as folder:
        other = Path(shutil.copytree(adapter, Path(folder) / "other"))
        with GeneratorSession(config, model_dir) as session:
            _seconds(session, request, adapter)  # files come into the page cache
        for _ in range(repetitions):
            with GeneratorSession(config, model_dir) as session:
                found["first use"].append(_seconds(session, request, adapter))
                found["another adapter"].append(_seconds(session, request, other))
                found["the same adapter"].append(_seconds(session, request, other))
                held = (session.resident_bytes() or 0) / GIB
            begin = time.perf_counter()
            with GeneratorSession(config, model_dir) as session:
                _seconds(session, request, adapter)
            found["a process for each use"].append(time.perf_counter() - begin)
    return found, held


def _row(case: str, seconds: Sequence[float]) -> str:
    middle = statistics.median(seconds)
    return f"| {case} | {middle:.2f} ({min(seconds):.2f} to {max(seconds):.2f}) |"


def main() -> None:
    """Measure as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", default="openvino", choices=["openvino", "transformers"])
    parser.add_argument("--repetitions", type=int, default=5)
    given = parser.parse_args()
    found, held = measure(given.engine, given.repetitions)
    print(f"| `{given.engine}`, n {given.repetitions} | seconds, median (range) |\n|---|---|")
    for case, seconds in found.items():
        print(_row(case, seconds))
    print(f"\nheld by the session: {held:.2f} GiB")


if __name__ == "__main__":
    main()
