"""Infill pairs as in nn-dup (``example_builder.py``): the LLM has to write ``forward``.

The user message is the network's code and nothing else, with the body of ``forward`` replaced by a
marker; the answer is the whole network. Unlike there it is ``forward`` of ``Net`` that is masked,
not whichever stands last in the file.
"""

from __future__ import annotations

import ast

from archloop.types import Message

MARKER = "# >>> FILL HERE: implement forward() <<<"


def infill_prompt(system: Message, code: str) -> list[Message] | None:
    """System and user message, or ``None`` for a network whose ``Net`` has no own ``forward``."""
    forward = next(
        (
            item
            for node in ast.parse(code).body
            if isinstance(node, ast.ClassDef) and node.name == "Net"
            for item in node.body
            if isinstance(item, ast.FunctionDef) and item.name == "forward"
        ),
        None,
    )
    if forward is None:
        return None
    lines = code.split("\n")
    first = forward.body[0]
    if first.lineno == forward.lineno:  # the body is on the line of the heading
        return None
    masked = [*lines[: first.lineno - 1], " " * first.col_offset + MARKER]
    masked += lines[forward.end_lineno :]
    return [system, {"role": "user", "content": "\n".join(masked)}]
