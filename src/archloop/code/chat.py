"""Networks as chat: render a pair, extract the network of an answer (a round trip)."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from archloop.code.blocks import Block, Pieces, fenced, repaired, unfenced
from archloop.code.joining import Joiner
from archloop.code.linking import linked, unlinked
from archloop.code.policy import contract_fault, parse
from archloop.types import Verdict

_TRIED = 8
"""Definitions of ``Net`` that are looked at, from the last one backwards."""
_BLOCKS = 64
"""Blocks, counted from the end, that may belong together."""
_END_TOKENS = re.compile(r"(?:<\|[\w ]{1,30}\|>|</s>|<eos>|<end_of_turn>|\[/INST\])\s*\Z")


@dataclass(frozen=True)
class Extraction:
    """The code of an answer, or why there is none."""

    code: str | None
    reason: str | None = None


def render_code(code: str) -> str:
    """The assistant's answer: exactly one fenced Python block.

    The fence is longer than any in the code. Definitions of :mod:`archloop.blocks` are written as
    the import that they came from.
    """
    code = unlinked(code)
    longest = max((len(run) for run in re.findall("`+", code)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}python\n{code.strip()}\n{fence}"


def extract_code(answer: str) -> str | None:
    """The code of an answer; see :func:`extract`."""
    return extract(answer).code


def extract(answer: str) -> Extraction:
    """The code of an answer: its last complete ``Net``, with the blocks that belong to it.

    Complete is what keeps the candidate contract. An answer without such a network still has code:
    its last ``Net``, complete or not, else its first Python block. A block that is cut off at the
    token limit counts to its end, and an answer without a fence if all of it is Python with a
    ``Net``. What a reasoning model drafts does not count. Imports of :mod:`archloop.blocks` are
    replaced by the blocks.
    """
    found = _found(answer)
    return found if found.code is None else Extraction(linked(found.code))


def _found(answer: str) -> Extraction:
    """The code as it is written."""
    answer = _plain(answer)
    pieces = fenced(answer)
    blocks = [repaired(block) for block in pieces.blocks[-_BLOCKS:]]
    python = [block for block in blocks if block.label != "other"]
    for known in (python, blocks):
        if (code := _network(known)) is not None:
            return Extraction(code)
    for reading in unfenced("".join(pieces.prose).strip("\n")) if _mentions_net(pieces) else ():
        if (code := _network([repaired(block) for block in reading[-_BLOCKS:]])) is not None:
            return Extraction(code)
    broken = [block.text for block in python if "class Net" in block.text]
    if python:
        return Extraction(broken[-1] if broken else python[0].text)
    return Extraction(None, _why(answer, pieces))


def _plain(answer: str) -> str:
    """The answer with plain line ends, without the tokens that end it."""
    answer = answer.replace("\r\n", "\n").removeprefix("\ufeff")
    for _ in range(_TRIED):
        end = _END_TOKENS.search(answer, max(0, len(answer) - 100))
        if end is None:
            break
        answer = answer[: end.start()].rstrip()
    return answer


def _network(blocks: Sequence[Block]) -> str | None:
    """The source of the last complete ``Net`` of these blocks, else of the last one."""
    python = [block for block in blocks if block.tree is not None]
    found = [i for i, block in enumerate(python) if block.defines_net][-_TRIED:]
    last, joiner = None, Joiner(python)
    for i in reversed(found):
        source = joiner.source(i)
        if len(found) == 1 or _is_complete(source):
            return source
        last = last or source
    return last


def _is_complete(source: str) -> bool:
    tree = parse(linked(source))
    return not isinstance(tree, Verdict) and contract_fault(tree) is None


def _mentions_net(pieces: Pieces) -> bool:
    return any("Net" in part for part in pieces.prose)


def _why(answer: str, pieces: Pieces) -> str:
    """Why an answer has no code, in a line."""
    if not answer.strip():
        return "the answer is empty"
    if pieces.cut:
        return "the answer ends within its reasoning"
    if pieces.drafts and not pieces.blocks:
        return "no Python code block outside the reasoning"
    if pieces.labels:
        said = ", ".join(dict.fromkeys(pieces.labels[:3]))
        return f"no Python code block; the answer has {said}"
    if "```" in answer or "~~~" in answer:
        return "the code block is empty"
    return "no code block, and the answer as a whole is not Python with a class Net"


def code_sha256(code: str) -> str:
    """Hex SHA-256 of a network's source."""
    return hashlib.sha256(code.encode()).hexdigest()
