"""Static preparation of seed networks: parse, contract, noise, cleaning, policy, suspect text.

Large sources are prepared by a pool of processes. Nothing of a network is executed.
"""

from __future__ import annotations

import ast
import gc
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass

from archloop.code.clean import Style, clean_tree
from archloop.code.hygiene import suspect_text, without_messages
from archloop.code.noise import without_noise
from archloop.code.policy import MAX_SOURCE_BYTES, contract_fault, parse
from archloop.errors import ArchloopError
from archloop.text import one_line
from archloop.types import Outcome, Verdict

UNPARSABLE = "does not parse"
_SMALLEST_CHUNK = 64
"""Networks that a process gets at a time, at least."""
_CHUNKS_PER_PROCESS = 2
_IDLE_SECONDS = 5
"""An idle worker process ends after this time and releases its memory."""


@dataclass(frozen=True)
class Prepared:
    """A network after the steps above: its cleaned code, or why it is dropped."""

    code: str | None
    step: str | None = None
    """The step that dropped it: ``parse``, ``contract`` or ``quarantine``."""
    reason: str | None = None
    error: str | None = None
    """The whole error line; the reason is the part that networks share."""


def prepare(code: str, style: Style = "unparse") -> Prepared:
    """All steps for one network."""
    tree = parse(code)
    if isinstance(tree, Verdict):
        return Prepared(None, "parse", UNPARSABLE, tree.error)
    if fault := contract_fault(tree):
        reason = f"{Outcome.CONTRACT_VIOLATION.value}: {fault.partition(';')[0]}"
        return Prepared(None, "contract", reason, one_line(fault))
    quiet = without_noise(code, thorough=True)
    if quiet != code:
        tree = ast.parse(quiet)
    try:
        cleaned = clean_tree(tree, quiet, style)
    except SyntaxError as error:
        return Prepared(None, "parse", "cannot be formatted anew", one_line(str(error)))
    if cleaned.fault is not None:
        reason = f"{Outcome.FORBIDDEN_CODE.value}: {cleaned.fault.partition(' (line')[0]}"
        return Prepared(None, "contract", reason, one_line(cleaned.fault))
    if len(cleaned.code.encode("utf-8", "replace")) > MAX_SOURCE_BYTES:
        return Prepared(None, "contract", f"source is longer than {MAX_SOURCE_BYTES} bytes")
    kept = without_messages(cleaned.code)
    if found := suspect_text(kept):
        return Prepared(None, "quarantine", f"quarantined: {found}")
    return Prepared(kept)


def prepare_all(codes: Sequence[str], style: Style, processes: int) -> list[Prepared]:
    """All steps for every network, in order.

    The work is done in this process where starting others would take longer.

    Args:
        codes: Sources of the networks; those of similar networks should be neighbours.
        style: How cleaned code is written.
        processes: At most this many processes work at the same time.

    Raises:
        ArchloopError: A worker process died.
    """
    processes = min(processes, len(codes) // (2 * _SMALLEST_CHUNK))
    if processes < 2:
        return [prepare(code, style) for code in codes]
    from joblib import Parallel, delayed

    # Similar networks share methods, and a process cleans equal methods once: large chunks keep
    # neighbours together, and more than one chunk a process evens out their work.
    size = max(_SMALLEST_CHUNK, -(-len(codes) // (processes * _CHUNKS_PER_PROCESS)))
    chunks = (codes[start : start + size] for start in range(0, len(codes), size))
    # joblib's processes do not import the caller's script again, as those of the standard library
    # do: a script without a main guard would start a second run there.
    pool = Parallel(n_jobs=processes, batch_size=1, idle_worker_timeout=_IDLE_SECONDS)
    try:
        found = pool(delayed(_prepare_chunk)(chunk, style) for chunk in chunks)
    except BrokenProcessPool as error:
        raise ArchloopError(f"seeds: a process that cleans networks was lost: {error}") from error
    return [one for chunk in found for one in chunk]


def _prepare_chunk(codes: Sequence[str], style: Style) -> list[Prepared]:
    """Runs in a worker process."""
    # Syntax trees contain no reference cycles, so the collector would walk them for nothing.
    gc.disable()
    return [prepare(code, style) for code in codes]
