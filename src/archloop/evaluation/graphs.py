"""Computation graphs of known networks, traced once in the sandbox and kept in the cache."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any

from archloop.code.chat import code_sha256
from archloop.config import SandboxConfig
from archloop.evaluation.executor import Executor, Trace, build_executor, in_order
from archloop.files import replacing
from archloop.machine.downloads import cache_dir, lock
from archloop.progress import Observer, Progress
from archloop.types import GraphSketch, Outcome

_VERSION = 8
"""Raised when tracing or the canonical form changes."""
_PASSING = (Outcome.TIMEOUT, Outcome.OUT_OF_MEMORY)
"""Another try may end otherwise, so these are not kept."""


def graphs_of(
    codes: Sequence[str],
    *,
    shape: tuple[int, int, int],
    classes: int,
    observer: Observer,
    executor: Executor | None = None,
    config: SandboxConfig | None = None,
) -> list[GraphSketch | None]:
    """A sketch of each network's graph, in order; ``None`` for those that cannot be traced.

    Args:
        codes: Sources that keep the candidate contract.
        shape: (channels, height, width) of an image.
        classes: Number of logits.
        observer: Told how far it is.
        executor: Traces them; ``None``: one is opened if there is anything to trace.
        config: Limits and isolation level of the one that is opened.
    """
    file = _file(shape, classes)
    with lock(f"graphs-{file.stem}"):
        known = dict(_read(file)) if file.is_file() else {}
        missing = {code_sha256(c): c for c in codes if code_sha256(c) not in known}
        if missing:
            jobs = [Trace(code, shape, classes) for code in missing.values()]
            with ExitStack() as stack:
                tracer = executor or stack.enter_context(build_executor(config or SandboxConfig()))
                found = _traced(tracer, jobs, observer)
            traced = dict(zip(missing, found, strict=True))
            lasting = {d: graph for d, (end, graph) in traced.items() if end not in _PASSING}
            _write(file, known | lasting)
            known |= {d: graph for d, (_, graph) in traced.items()}
    return [known[code_sha256(code)] for code in codes]


def traced_before(
    codes: Sequence[str], *, shape: tuple[int, int, int], classes: int
) -> list[GraphSketch | None] | None:
    """What :func:`graphs_of` gives, if all of it is in the cache; nothing is traced."""
    file = _file(shape, classes)
    known = dict(_read(file)) if file.is_file() else {}
    digests = [code_sha256(code) for code in codes]
    return [known[d] for d in digests] if known.keys() >= set(digests) else None


def _file(shape: tuple[int, int, int], classes: int) -> Path:
    """Operators differ between versions of torch."""
    size = "x".join(map(str, (*shape, classes)))
    return cache_dir() / "graphs" / f"v{_VERSION}-torch-{version('torch')}-{size}.jsonl"


def _traced(
    executor: Executor, jobs: Sequence[Trace], observer: Observer
) -> list[tuple[Outcome, GraphSketch | None]]:
    found: list[tuple[Outcome, GraphSketch | None]] = []
    for traced in in_order(executor, jobs):
        found.append((traced.verdict.outcome, traced.graph))
        if len(found) % 20 == 0:
            done, total = len(found), len(jobs)
            observer.update(Progress("graphs", done=done, total=total, unit="networks"))
    return found


def _read(file: Path) -> Iterator[tuple[str, GraphSketch | None]]:
    for line in file.read_text("utf-8").splitlines():
        row = json.loads(line)
        shingles = base64.b64decode(row["shingles"])
        outputs = tuple(row["outputs"]) or None
        motifs = None if row["motifs"] is None else tuple(row["motifs"])
        sketch = GraphSketch(row["hash"], shingles, outputs, row["profile"], motifs)
        yield row["code"], sketch if row["hash"] else None


def _write(file: Path, known: dict[str, GraphSketch | None]) -> None:
    with replacing(file) as sink:
        for code, graph in known.items():
            shingles = b"" if graph is None else graph.shingles
            row: dict[str, Any] = {
                "code": code,
                "hash": None if graph is None else graph.hash,
                "shingles": base64.b64encode(shingles).decode(),
                "outputs": [] if graph is None else graph.outputs or [],
                "profile": None if graph is None else graph.profile,
                "motifs": None if graph is None else graph.motifs,
            }
            sink.write(json.dumps(row) + "\n")
