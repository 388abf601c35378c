"""Pairs of networks that compute the same or not, and how well each kind of novelty tells.

    python tools/graph_pairs.py make tests/data/graph_pairs.jsonl.gz
    python tools/graph_pairs.py measure tests/data/graph_pairs.jsonl.gz

``make`` takes networks of LEMUR (the pinned wheel, read as text) and edits their syntax trees. The
label is not that of the edit's intention: both networks are run in the sandbox with weights that
depend only on a tensor's shape, so equal networks give equal logits however their layers are named
and ordered. An edit that was meant to keep the logits and changed them, or the other way round, is
left out and counted.
"""

from __future__ import annotations

import argparse
import ast
import gzip
import hashlib
import json
import random
import statistics
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
from graph_edits import CHANGING, KEEPING

from archloop.code.policy import check
from archloop.config import NoveltyConfig, SandboxConfig
from archloop.corpus.seeds.lemur import LemurSource
from archloop.novelty import NoveltyIndex, graph_hash, jaccard, shingles
from archloop.sandbox.host.client import Sandbox

SHAPE, CLASSES, BUDGET = (3, 32, 32), 10, 500_000
NETWORKS = 30
OF_EACH = 5
"""Pairs of each label that a network gives."""
MOST_CHARACTERS = 9_000

MEASURE = """

def _logits():
    import zlib
    net = Net((2, 3, 32, 32), (10,), {'lr': 0.01, 'momentum': 0.9, 'dropout': 0.2},
              torch.device('cpu')).eval()
    def fill(t, low, high):
        g = torch.Generator().manual_seed(zlib.crc32(repr(tuple(t.shape)).encode()))
        t.copy_(torch.rand(t.shape, generator=g) * (high - low) + low)
    with torch.no_grad():
        for p in net.parameters():
            bound = (3 / max(1, p[0].numel())) ** 0.5 if p.dim() > 1 else 1.0
            fill(p, -bound, bound) if p.dim() > 1 else fill(p, 0.5, 1.5)
        for m in net.modules():
            if isinstance(getattr(m, 'running_var', None), torch.Tensor):
                fill(m.running_var, 0.5, 1.5)
                fill(m.running_mean, -0.5, 0.5)
        x = torch.rand((2, 3, 32, 32), generator=torch.Generator().manual_seed(1))
        print('LOGITS', net(x).flatten().tolist())
_logits()
"""


def behaviour(sandbox: Sandbox, code: str) -> list[float] | None:
    verdict = sandbox.probe(code + MEASURE, shape=SHAPE, classes=CLASSES, max_params=BUDGET)
    lines = (verdict.output or "").splitlines()
    logits = [line[7:] for line in lines if line.startswith("LOGITS ")]
    if not verdict.outcome.is_valid or len(logits) != 1 or "nan" in logits[0] or "inf" in logits[0]:
        return None
    values = json.loads(logits[0])
    spread = max(values[:10]) - min(values[:10])
    return values if spread > 1e-4 else None


def same_behaviour(a: list[float], b: list[float]) -> bool:
    one, two = np.array(a), np.array(b)
    scale = max(1e-6, float(np.ptp(one)))
    return bool(np.abs(one - two).max() / scale < 1e-3)


def bases(sandbox: Sandbox) -> list[tuple[str, str]]:
    """Small networks that build, from all families in turn."""
    networks = [n for n in LemurSource().networks() if len(n.code) < MOST_CHARACTERS]
    order = {n.name: hashlib.sha256(n.name.encode()).hexdigest() for n in networks}
    networks.sort(key=lambda n: order[n.name])
    seen: Counter[str] = Counter()
    turns = []
    for n in networks:
        seen[n.family] += 1
        turns.append((seen[n.family], order[n.name], n))
    found, codes, probed = [], [], 0
    for _, _, n in sorted(turns, key=lambda t: t[:2]):
        if len(found) == NETWORKS:
            break
        try:
            code = ast.unparse(ast.parse(n.code)) + "\n"
        except SyntaxError:
            continue
        if "import torch\n" not in code or "nn" not in code or check(code) is not None:
            continue
        if any(jaccard(shingles(code), other) > 0.8 for other in codes):
            continue
        probed += 1
        if behaviour(sandbox, code) is not None:
            found.append((n.name, code))
            codes.append(shingles(code))
    print(f"{len(found)} of {probed} networks taken", file=sys.stderr)
    return found


def edited(code: str, kind: str, rng: random.Random) -> str | None:
    tree = ast.parse(code)
    if not (KEEPING[kind](tree) if kind in KEEPING else CHANGING[kind](tree, rng)):
        return None
    text = ast.unparse(ast.fix_missing_locations(tree)) + "\n"
    if kind == "comments":
        lines = text.splitlines()
        text = (
            "\n".join(
                f"{line}  # step {i}" if i % 3 == 0 and line.strip() and '"""' not in line else line
                for i, line in enumerate(lines)
            )
            + "\n"
        )
    try:
        ast.parse(text)
    except SyntaxError:
        return None
    return text if text != code else None


def make(out: Path) -> None:
    rows, left_out = [], Counter()
    used: Counter[str] = Counter()
    with Sandbox(SandboxConfig(build_seconds=10)) as sandbox:
        for name, code in bases(sandbox):
            original = behaviour(sandbox, code)
            rng = random.Random(name)
            for same, edits in ((True, KEEPING), (False, CHANGING)):
                taken = 0
                # Kinds that apply to few networks come first.
                for kind in sorted(edits, key=lambda k: (used[k], k)):
                    if taken == OF_EACH:
                        break
                    for _ in range(1 if same else 4):
                        text = edited(code, kind, rng)
                        found = None if text is None else behaviour(sandbox, text)
                        if found is None:
                            continue
                        if same_behaviour(original, found) is not same:
                            left_out[kind] += 1
                            continue
                        rows.append(
                            {"base": name, "kind": kind, "same": same, "a": code, "b": text}
                        )
                        used[kind] += 1
                        taken += 1
                        break
    out.parent.mkdir(parents=True, exist_ok=True)
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    out.write_bytes(gzip.compress(data, 9, mtime=0))
    print(f"{len(rows)} pairs, {sum(r['same'] for r in rows)} same; {out.stat().st_size:,} bytes")
    print("pairs:", dict(used.most_common()), "\nleft out:", dict(left_out))


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]


def measure(path: Path, every: int = 1) -> None:
    rows, config = read(path)[::every], NoveltyConfig()
    codes = sorted({code for row in rows for code in (row["a"], row["b"])})
    hashes, seconds, hashing = {}, [], []
    with Sandbox(SandboxConfig()) as sandbox:
        for code in codes:
            started = time.perf_counter()
            _, graph = sandbox.trace(code, shape=SHAPE, classes=CLASSES)
            seconds.append(time.perf_counter() - started)
            started = time.perf_counter()
            hashes[code] = None if graph is None else graph_hash(graph)
            hashing.append(time.perf_counter() - started)
    index = NoveltyIndex(config)
    signature = {code: index.sketch(code).signature for code in codes}
    decisions = {
        "lexical, MinHash estimate > 0.90": lambda a, b: (
            (signature[a] == signature[b]).mean() > 0.9
        ),
        "lexical, exact Jaccard > 0.90": lambda a, b: jaccard(shingles(a), shingles(b)) > 0.9,
        "normalized, exact Jaccard > 0.90": lambda a, b: (
            jaccard(shingles(a, view="normalized"), shingles(b, view="normalized")) > 0.9
        ),
        "graph hash": lambda a, b: hashes[a] is not None and hashes[a] == hashes[b],
    }
    n_same = sum(row["same"] for row in rows)
    print(
        f"{len(rows)} pairs of {len({r['base'] for r in rows})} networks: {n_same} same, "
        f"{len(rows) - n_same} not; {sum(h is None for h in hashes.values())} without a graph; "
        f"{len({hashes[r['a']] for r in rows})} hashes of the unedited networks\n"
    )
    print("| same network, by | precision | recall | wrong |\n|---|---|---|---|")
    for name, same in decisions.items():
        said = [(bool(same(row["a"], row["b"])), row) for row in rows]
        hits = sum(s and row["same"] for s, row in said)
        wrong = Counter(row["kind"] for s, row in said if s is not row["same"])
        precision = hits / max(1, sum(s for s, _ in said))
        most = ", ".join(f"{k} {n}" for k, n in wrong.most_common(4))
        print(f"| {name} | {precision:.3f} | {hits / n_same:.3f} | {most or 'none'} |")
        if name == "graph hash":
            for s, row in said:
                if s is not row["same"]:
                    print(row["base"], row["kind"], row["same"], file=sys.stderr)
    print(
        f"\ntrace: median {statistics.median(seconds) * 1e3:.0f} ms, "
        f"90 % {sorted(seconds)[int(0.9 * len(seconds))] * 1e3:.0f} ms; "
        f"hash: median {statistics.median(hashing) * 1e3:.1f} ms (n = {len(codes)})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("do", choices=["make", "measure"])
    parser.add_argument("file", type=Path)
    parser.add_argument("--every", type=int, default=1, help="measure every so many pairs only")
    given = parser.parse_args()
    if given.do == "make":
        make(given.file)
    else:
        measure(given.file, given.every)


if __name__ == "__main__":
    main()
