"""Source files in other encodings than plain UTF-8."""

from __future__ import annotations

import codecs

import pytest

from archloop.code.policy import check, parse, unreadable
from archloop.code.reading import decode_source
from archloop.types import Verdict
from conftest import network

TEXT = "# naïve\nx = 1\n"


@pytest.mark.parametrize(
    "data",
    [
        TEXT.encode(),
        codecs.BOM_UTF8 + TEXT.encode(),
        b"# -*- coding: latin-1 -*-\n" + TEXT.encode("latin-1"),
        b"",
    ],
)
def test_what_python_reads_is_read(data: bytes) -> None:
    text, fault = decode_source(data)
    assert fault is None
    assert text in (TEXT, "# -*- coding: latin-1 -*-\n" + TEXT, "")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (TEXT.encode("utf-16"), "UTF-16"),
        (TEXT.encode("utf-16-be"), "UTF-16"),
        (TEXT.encode("utf-32"), "UTF-32"),
        (TEXT.encode("utf-32-le"), "UTF-32"),
        (TEXT.encode("latin-1"), "byte 0xef is not UTF-8 (line 1)"),
        (b"\n" * 4 + TEXT.encode("latin-1"), "byte 0xef is not UTF-8 (line 5)"),
        (b"# coding: klingon\n", "unknown encoding"),
    ],
)
def test_another_encoding_is_named(data: bytes, said: str) -> None:
    _, fault = decode_source(data)
    assert fault is not None
    assert said in fault
    verdict = unreadable(fault)
    assert verdict is not None
    assert "UTF-8" in (verdict.error or "")


def test_a_mark_before_code_that_is_text_already_is_no_fault() -> None:
    """As in the answer of an LLM, or a row of a corpus."""
    assert check("\ufeff" + network()) is None
    assert not isinstance(parse("\ufeffx = 1"), Verdict)
