"""The costly steps without the sandbox: parse, contract, cleaning, policy, quarantine.

They are done in processes of their own (:mod:`archloop.corpus.seeds.job`), one a core. Nothing of a
network is executed.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from archloop.code.clean import Style, clean_tree
from archloop.code.policy import MAX_SOURCE_BYTES, contract_fault, parse
from archloop.corpus.seeds.quarantine import quarantine_reason
from archloop.errors import ArchloopError
from archloop.types import Outcome, Verdict

UNPARSABLE = "does not parse"
_ROUND = 64
"""Networks on one line: neighbours, which share methods."""


@dataclass(frozen=True)
class Prepared:
    """A network after the steps above: its cleaned code, or why it is dropped."""

    code: str | None
    step: str | None = None
    """The step that dropped it: ``parse``, ``contract`` or ``quarantine``."""
    reason: str | None = None


def prepare(code: str, style: Style = "unparse") -> Prepared:
    """All steps for one network."""
    tree = parse(code)
    if isinstance(tree, Verdict):
        return Prepared(None, "parse", UNPARSABLE)
    if fault := contract_fault(tree):
        reason = fault.partition(";")[0]
        return Prepared(None, "contract", f"{Outcome.CONTRACT_VIOLATION.value}: {reason}")
    try:
        cleaned = clean_tree(tree, code, style)
    except SyntaxError:
        return Prepared(None, "parse", "cannot be formatted anew")
    if cleaned.fault is not None:
        reason = cleaned.fault.partition(" (line")[0]
        return Prepared(None, "contract", f"{Outcome.FORBIDDEN_CODE.value}: {reason}")
    if len(cleaned.code.encode("utf-8", "replace")) > MAX_SOURCE_BYTES:
        return Prepared(None, "contract", f"source is longer than {MAX_SOURCE_BYTES} bytes")
    if found := quarantine_reason(cleaned.code):
        return Prepared(None, "quarantine", f"quarantined: {found}")
    return Prepared(cleaned.code)


def prepare_all(codes: Sequence[str], style: Style, processes: int) -> list[Prepared]:
    """Every network, in order; in this process where starting others would take longer.

    Raises:
        ArchloopError: A process was lost.
    """
    processes = min(processes, len(codes) // (2 * _ROUND))
    if processes < 2:
        return [prepare(code, style) for code in codes]
    found: list[Prepared | None] = [None] * len(codes)
    rounds = list(range(0, len(codes), _ROUND))
    # Each has a stretch of its own, as neighbours share methods; who is done first takes from the
    # end of the longest that is left.
    share = -(-len(rounds) // processes)
    stretches = [rounds[i * share : (i + 1) * share] for i in range(processes)]
    lock = threading.Lock()
    faults: list[Exception] = []

    def next_round(own: list[int]) -> int | None:
        with lock:
            longest = max(stretches, key=len)
            return own.pop(0) if own else longest.pop() if longest else None

    def serve(own: list[int]) -> None:
        command = [sys.executable, "-P", "-m", "archloop.corpus.seeds.job", style]
        try:
            with subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8"
            ) as process:
                assert process.stdin is not None
                assert process.stdout is not None
                while (start := next_round(own)) is not None:
                    process.stdin.write(json.dumps(codes[start : start + _ROUND]) + "\n")
                    process.stdin.flush()
                    rows = json.loads(process.stdout.readline())
                    found[start : start + _ROUND] = [Prepared(*row) for row in rows]
                process.stdin.close()
        except (OSError, ValueError) as error:
            faults.append(error)

    threads = [threading.Thread(target=serve, args=(own,)) for own in stretches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if faults:
        raise ArchloopError(f"seeds: a process that cleans networks was lost: {faults[0]}")
    return [one for one in found if one is not None]
