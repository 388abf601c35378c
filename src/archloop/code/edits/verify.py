"""Whether an edit did what it claims: the measures of both networks are compared."""

from __future__ import annotations

from collections.abc import Mapping

from archloop.code.edits.library import Edit

_WORDS = {1: "grow", -1: "shrink", 0: "stay"}


def broken_claim(edit: Edit, before: Mapping[str, float], after: Mapping[str, float]) -> str | None:
    """The first claim of an edit that the traced networks do not bear out; ``None``: it holds.

    Args:
        edit: What was applied.
        before: Measures of the parent by name: those of its structure profile, and ``n_params``.
        after: Measures of the child.
    """
    for name, direction in edit.claim.items():
        if name not in before or name not in after:
            return f"{name} was not measured"
        change = after[name] - before[name]
        if (change > 0) - (change < 0) != direction:
            text = f"{name} should {_WORDS[direction]}"
            return f"{text}, and went from {before[name]:g} to {after[name]:g}"
    return None
