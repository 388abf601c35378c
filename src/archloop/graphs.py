"""Computation graphs of known networks, traced once in the sandbox and kept in the cache."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from archloop.assets import cache_dir, lock
from archloop.chat import code_sha256
from archloop.config import SandboxConfig
from archloop.novelty import Graph, sketch_graph
from archloop.progress import Observer, Progress
from archloop.provenance import usable_cores
from archloop.sandbox import Sandbox
from archloop.types import GraphSketch

_VERSION = 1
"""Raised when tracing or the canonical form changes."""


def graphs_of(
    codes: Sequence[str],
    *,
    shape: tuple[int, int, int],
    classes: int,
    config: SandboxConfig,
    observer: Observer,
) -> list[GraphSketch | None]:
    """A sketch of each network's graph, in order; ``None`` for those that cannot be traced.

    Args:
        codes: Sources that keep the candidate contract.
        shape: (channels, height, width) of an image.
        classes: Number of logits.
        config: Limits and isolation level.
        observer: Told how far it is.
    """
    file = _file(shape, classes)
    with lock(f"graphs-{file.stem}"):
        known = dict(_read(file)) if file.is_file() else {}
        missing = {code_sha256(c): c for c in codes if code_sha256(c) not in known}
        if missing:
            with Sandbox(config) as sandbox:
                found = _trace(
                    list(missing.values()),
                    lambda code: sandbox.trace(code, shape=shape, classes=classes)[1],
                    config.workers or usable_cores(),
                    observer,
                )
            known |= dict(zip(missing, found, strict=True))
            _write(file, known)
    return [known[code_sha256(code)] for code in codes]


def traced_before(
    codes: Sequence[str], *, shape: tuple[int, int, int], classes: int
) -> list[GraphSketch | None]:
    """What :func:`graphs_of` has in the cache; ``None`` for the others, which stay untraced."""
    file = _file(shape, classes)
    known = dict(_read(file)) if file.is_file() else {}
    return [known.get(code_sha256(code)) for code in codes]


def _file(shape: tuple[int, int, int], classes: int) -> Path:
    size = "x".join(map(str, (*shape, classes)))
    return cache_dir() / "graphs" / f"v{_VERSION}-{size}.jsonl"


def _trace(
    codes: Sequence[str], trace: Callable[[str], Graph | None], workers: int, observer: Observer
) -> list[GraphSketch | None]:
    def sketch(code: str) -> GraphSketch | None:
        graph = trace(code)
        return None if graph is None else sketch_graph(graph)

    found: list[GraphSketch | None] = []
    with ThreadPoolExecutor(workers) as pool:
        for one in pool.map(sketch, codes):
            found.append(one)
            if len(found) % 20 == 0:
                done, total = len(found), len(codes)
                observer.update(Progress("graphs", done=done, total=total, unit="networks"))
    return found


def _read(file: Path) -> Iterator[tuple[str, GraphSketch | None]]:
    for line in file.read_text("utf-8").splitlines():
        row = json.loads(line)
        shingles = base64.b64decode(row["shingles"])
        yield row["code"], GraphSketch(row["hash"], shingles) if row["hash"] else None


def _write(file: Path, known: dict[str, GraphSketch | None]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(file.name + ".part")
    with partial.open("w", encoding="utf-8") as sink:
        for code, graph in known.items():
            shingles = b"" if graph is None else graph.shingles
            row = {
                "code": code,
                "hash": None if graph is None else graph.hash,
                "shingles": base64.b64encode(shingles).decode(),
            }
            sink.write(json.dumps(row) + "\n")
    partial.replace(file)
