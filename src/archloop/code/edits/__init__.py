"""Edits of networks as text: source in, source out.

:func:`edited` applies one edit; the library is :data:`archloop.code.edits.library.EDITS`.
"""

from __future__ import annotations

import ast
import random

from archloop.code.edits.chains import chains
from archloop.code.edits.library import EDITS, Edit, apply
from archloop.code.linking import MODULE, linked, unlinked

__all__ = ["EDITS", "Edit", "edited"]


def edited(source: str, edit: Edit, rng: random.Random) -> str | None:
    """The source after one edit, with its author's names; ``None`` where there is no place for it.

    The blocks that an edit brings (``Skip``, ``Gate``, ...) are defined in the result, which is a
    single file. Whether the edit did what it claims is for
    :mod:`archloop.code.edits.verify` to say.

    Args:
        source: Of a network that parses; cleaned, as comments are lost.
        edit: One of the library.
        rng: Of the choice of a place.
    """
    short = unlinked(source)
    tree = ast.parse(short)
    before = ast.dump(tree)
    if not apply(edit, chains(tree), rng) or ast.dump(tree) == before:
        return None
    text = ast.unparse(ast.fix_missing_locations(tree)) + "\n"
    return linked(text if MODULE in text else _with_blocks(text))


def _with_blocks(text: str) -> str:
    """The source with an import of the blocks behind its own imports."""
    body = ast.parse(text).body
    last = max((n.lineno for n in body if isinstance(n, ast.Import | ast.ImportFrom)), default=0)
    lines = text.split("\n")
    return "\n".join([*lines[:last], f"from {MODULE} import *", *lines[last:]])
