"""Reads the source of a network from bytes, as Python reads a file, with its building blocks."""

from __future__ import annotations

import codecs
import io
import tokenize

from archloop.code.linking import linked

BYTE_ORDER_MARK = "\ufeff"
_MARKS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)


def decode_source(data: bytes) -> tuple[str, str | None]:
    """The text without a byte order mark, and what is wrong with its encoding.

    UTF-8, or what a line ``# -*- coding: latin-1 -*-`` names. Where that fails, the text has
    replacement characters, and must not be used. Imports of :mod:`archloop.blocks` are replaced by
    the blocks.
    """
    text, fault = _decoded(data)
    return linked(text), fault


def _decoded(data: bytes) -> tuple[str, str | None]:
    for mark, name in _MARKS:
        if data.startswith(mark):
            return data.decode(name, "replace"), f"encoded as {name}; save it as UTF-8"
    head = data[:64]
    if head.count(0) * 4 >= len(head) > 0:
        wide = "UTF-32" if head.count(0) * 2 > len(head) else "UTF-16"
        return data.decode("utf-8", "replace"), f"encoded as {wide}; save it as UTF-8"
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
        return data.decode(encoding).removeprefix(BYTE_ORDER_MARK), None
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        fault = f"byte {data[error.start]:#04x} is not {error.encoding.upper()} (line {line})"
    except SyntaxError:
        # Of an unknown name, and of a byte in the first two lines that is not UTF-8.
        try:
            data.decode("utf-8")
            fault = "its coding line names an unknown encoding"
        except UnicodeDecodeError as error:
            line = data.count(b"\n", 0, error.start) + 1
            fault = f"byte {data[error.start]:#04x} is not UTF-8 (line {line})"
    advice = "save it as UTF-8, or name its encoding in the first line: # -*- coding: latin-1 -*-"
    return data.decode("utf-8", "replace"), f"{fault}; {advice}"
