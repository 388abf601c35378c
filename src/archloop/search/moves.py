"""Edits of accepted networks as requests: local search for a strategy, with an LLM or without.

A request has the prompt for an edit (``PromptTemplate.render_edit``) and says in its origin which
edit of which network it asks for. An LLM answers the prompt; where there is none, :func:`move`
makes the edit itself.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from archloop.code.chat import extract_code
from archloop.code.edits import EDITS, edited
from archloop.config.derived import derive_seed
from archloop.search.history import History
from archloop.search.prompts import PromptTemplate
from archloop.types import Candidate, Message, Origin, Request

_TRIES = 8
"""Edits that are drawn until one has a place."""
_OPERATOR = "edit:"


Prompt = tuple[tuple[Message, ...], Origin]
"""What a request says, and where it comes from."""


def with_edits(
    designs: Sequence[Prompt], share: float, template: PromptTemplate, history: History, cycle: int
) -> list[Prompt]:
    """The prompts of a cycle, a share of them replaced by edits of accepted networks.

    Args:
        designs: The prompts for new networks, in index order.
        share: Probability that one is replaced.
        template: Of the run.
        history: Of the run; before anything is accepted nothing is replaced.
        cycle: Whose prompts they are.
    """
    rng = random.Random(derive_seed(history.seed, "edits", cycle))
    parents = history.accepted_before(cycle)
    found = []
    for design in designs:
        edit = edit_prompt(template, history, parents, rng) if rng.random() < share else None
        found.append(design if edit is None else edit)
    return found


def edit_prompt(
    template: PromptTemplate, history: History, parents: Sequence[Candidate], rng: random.Random
) -> Prompt | None:
    """A prompt for an edit of one of these networks that has a place for it.

    Args:
        template: Of the run.
        history: Of the run.
        parents: Networks to choose from, each as likely.
        rng: Of the choice.

    Returns:
        The messages, and the origin that names edit and parent; ``None``: no edit was found.
    """
    if not parents:
        return None
    for _ in range(_TRIES):
        parent, edit = rng.choice(parents), EDITS[rng.choice([*EDITS])]
        code = parent.code or ""
        if edited(code, edit, random.Random(rng.random())) is None:
            continue
        messages = template.render_edit(
            history.subject, history.max_params, None, instruction=edit.instruction, code=code
        )
        origin = Origin(f"{_OPERATOR}{edit.name}", template.digest, (parent.id,))
        return tuple(messages), origin
    return None


def move(request: Request) -> str | None:
    """The network that a request for an edit asks for, made by the edit itself.

    Args:
        request: Its seed decides where the edit is applied.

    Returns:
        The source; ``None`` where the request asks for no edit, or there is no place for it.
    """
    if not request.origin.operator.startswith(_OPERATOR) or not request.messages:
        return None
    edit = EDITS.get(request.origin.operator.removeprefix(_OPERATOR))
    parent = extract_code(request.messages[-1]["content"])
    if edit is None or parent is None:
        return None
    rng = random.Random(request.seed)
    for _ in range(_TRIES):
        if (code := edited(parent, edit, rng)) is not None:
            return code
    return None
