"""The hostile files as a set: every known cheat has one, and each says what is expected of it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from archloop.corpus.seed_corpus import accepted_pair
from archloop.types import Candidate, Outcome
from conftest import HOSTILE

ROWS = [f"C{n}" for n in (*range(1, 15), 18)] + [f"K{n}" for n in range(1, 12)]
FILES = sorted(HOSTILE.glob("*.py"))


def what(path: str) -> str:
    """The line that says what a hostile file does."""
    lines = (HOSTILE / path).read_text().splitlines()
    return next(li for li in lines if not li.startswith(("# expected: ", "# flags: ")))


@pytest.mark.parametrize("row", ROWS)
def test_every_known_cheat_has_a_hostile_file(row: str) -> None:
    tags = [re.findall(r"\b[CK]\d+\b", what(file.name).partition(":")[0]) for file in FILES]
    assert any(row in found for found in tags)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_hostile_file_says_how_it_ends(file: Path) -> None:
    first = file.read_text().splitlines()[0]
    assert first.startswith("# expected: ")
    for outcome in first.removeprefix("# expected: ").split(","):
        assert Outcome(outcome)


def test_what_is_meant_for_the_llm_does_not_reach_the_corpus() -> None:
    code = (HOSTILE / "poisons_the_corpus.py").read_text()
    candidate = Candidate("c01-0000", 1, 0, Outcome.ACCEPTED, code=code)
    pair = accepted_pair(candidate, [{"role": "system", "content": ""}] * 2)
    for word in ("Ignore", "SYSTEM", "ASSISTANT", "api_key", "without rules"):
        assert word in code
        assert word not in pair.code
