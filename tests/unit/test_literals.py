"""Data in a source."""

from __future__ import annotations

from archloop.code.literals import literal_bytes
from archloop.sandbox.host.flags import LARGE_LITERALS, of_source
from conftest import network


def test_an_honest_network_holds_next_to_nothing() -> None:
    assert literal_bytes(network()) < 100
    assert of_source(network()) == []


def test_data_is_found_in_every_kind_of_constant_and_in_names() -> None:
    for code in (
        f"x = {'a' * 2000!r}",
        f"x = {bytes(2000)!r}",
        f"x = {[n / 7 for n in range(250)]}",
        f"x = {'9' * 4300}",
        f"x = {['t' + str(n) for n in range(600)]}",
        f"{'n' * 2000} = 1",
        f"x.{'n' * 2000}",
        f"def f({'n' * 2000}): pass",
        f"x = f'{{y}}{'a' * 2000}'",
    ):
        assert of_source(code) == [LARGE_LITERALS], code[:40]


def test_docstrings_repetitions_and_what_does_not_parse_do_not_count() -> None:
    assert literal_bytes(f"'''{'a' * 2000}'''") == 0
    assert literal_bytes("x = " + " + ".join(["'abc'"] * 500)) == 3
    assert literal_bytes("def") == 0
