"""What holds for the carriers of data whoever makes them."""

from __future__ import annotations

import pytest

from archloop.text import MAX_ERROR
from archloop.types import Outcome, Verdict


@pytest.mark.parametrize(
    "text",
    ["x" * 5000, "two\nlines\r\nand\ttabs", "\x1b[2Jred\x00", "\u2028\u202e\ud800", f"{2**4000}"],
)
def test_a_verdict_has_one_short_line(text: str) -> None:
    error = Verdict(Outcome.OVER_BUDGET, text).error
    assert error is not None
    assert len(error) <= MAX_ERROR
    assert error.isprintable()
    assert error.encode()


def test_a_short_line_stays_as_it_is() -> None:
    assert Verdict(Outcome.TIMEOUT, "took longer than 3 s").error == "took longer than 3 s"
    assert Verdict(Outcome.VALID).error is None
