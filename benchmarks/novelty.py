"""Near-duplicate removal over all of LEMUR, beside datasketch, rensa and nn-dup 2.2.4.

All take the same networks (cleaned, distinct, within the contract) and the same parameters: lexer
tokens, k = 10, 256 permutations, retrieval at 0.85, near-duplicate above 0.90 by exact Jaccard,
best accuracy first. The datasketch path is the usual one: Python's ``tokenize``, a set of shingle
strings, ``MinHash``, ``MinHashLSH``. Where decisions differ, the exact similarity to what each way
kept before says why. datasketch and rensa are the extra ``bench``; without them, or without
nn-dup's unpacked wheel in the folder ``NN_DUP``, their rows are left out.
"""

from __future__ import annotations

import importlib.util
import io
import os
import statistics
import sys
import time
import tokenize
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from archloop.config import NoveltyConfig
from archloop.corpus.seeds.lemur import LemurSource
from archloop.corpus.seeds.prepare import prepare_all
from archloop.machine.hardware import usable_cores
from archloop.novelty import NoveltyIndex, deduplicate, jaccard, shingles
from benchmarks.table import Row

CONFIG = NoveltyConfig()
PASSES = 3
"""Of archloop: its seconds are few, so a neighbour on the machine weighs more in one pass."""
_LAYOUT = (
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
)
Item = tuple[str, str, float | None]


@dataclass
class Done:
    """One way to remove near-duplicates: what it kept, and the seconds of its steps."""

    kept: set[str]
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def total(self) -> float:
        """All steps."""
        return sum(self.seconds.values())


def lemur_items() -> list[Item]:
    """Every network that the contract and the policy let pass, cleaned, once."""
    networks = sorted(LemurSource().networks(), key=lambda n: n.name)
    prepared = prepare_all([n.code for n in networks], "unparse", usable_cores())
    items: dict[str, Item] = {}
    for network, result in zip(networks, prepared, strict=True):
        if result.code is not None:
            items.setdefault(result.code, (network.name, result.code, network.accuracy))
    return sorted(items.values(), key=lambda i: (i[2] is None, -(i[2] or 0.0), i[0]))


def ours(items: Sequence[Item]) -> tuple[Done, str]:
    """archloop, in one process, with nothing remembered; the median of several passes, and all."""
    tokens_module = sys.modules[shingles.__module__]
    seconds = []
    for _ in range(PASSES):
        for name in ("_line_words", "_line_hashes", "_token_digest"):
            getattr(tokens_module, name).cache_clear()
        started = time.perf_counter()
        kept, _ = deduplicate(items, CONFIG)
        seconds.append(time.perf_counter() - started)
    median = statistics.median(seconds)
    spread = f"{median:.2f} [{min(seconds):.2f}, {max(seconds):.2f}] (n {PASSES})"
    return Done(set(kept), {"all": median}), spread


def standard_shingles(code: str) -> set[str]:
    """The usual way to a set of shingles."""
    stream = tokenize.generate_tokens(io.StringIO(code).readline)
    words = [t.string for t in stream if t.type not in _LAYOUT]
    size = min(CONFIG.shingle_size, len(words))
    return {"\x1f".join(words[i : i + size]) for i in range(len(words) - size + 1)}


def usual(items: Sequence[Item], sketch: Callable[[set[str]], object], lsh: object) -> Done:
    """tokenize, sets of strings, a library's MinHash and its LSH, exact Jaccard on the hits."""
    known: dict[str, set[str]] = {}
    seconds = {"shingles": 0.0, "signatures": 0.0, "lsh and exact": 0.0}
    for id, code, _ in items:
        t0 = time.perf_counter()
        found = standard_shingles(code)
        t1 = time.perf_counter()
        signature = sketch(found)
        t2 = time.perf_counter()
        hits = lsh.query(signature)  # type: ignore[attr-defined]
        limit = CONFIG.near_duplicate_threshold
        if not any(len(found & known[h]) / len(found | known[h]) > limit for h in hits):
            lsh.insert(id, signature)  # type: ignore[attr-defined]
            known[id] = found
        t3 = time.perf_counter()
        for step, spent in zip(seconds, (t1 - t0, t2 - t1, t3 - t2), strict=True):
            seconds[step] += spent
    return Done(set(known), seconds)


def with_datasketch(items: Sequence[Item]) -> Done:
    """Datasketch as its documentation shows it."""
    from datasketch import MinHash, MinHashLSH

    def sketch(found: set[str]) -> object:
        signature = MinHash(num_perm=CONFIG.permutations)
        signature.update_batch([s.encode() for s in found])
        return signature

    return usual(
        items, sketch, MinHashLSH(threshold=CONFIG.lsh_threshold, num_perm=CONFIG.permutations)
    )


def with_rensa(items: Sequence[Item]) -> Done:
    """Rensa (Rust) in the place of datasketch."""
    from rensa import RMinHash, RMinHashLSH

    numbers: dict[int, str] = {}

    class Named:
        """rensa's LSH with names in the place of numbers."""

        def __init__(self) -> None:
            # 16 x 16: the split of 256 in whole bands that retrieves 0.90 best (95 %).
            self._lsh = RMinHashLSH(CONFIG.lsh_threshold, CONFIG.permutations, 16)

        def query(self, signature: object) -> list[str]:
            return [numbers[n] for n in self._lsh.query(signature)]

        def insert(self, id: str, signature: object) -> None:
            numbers[len(numbers)] = id
            self._lsh.insert(len(numbers) - 1, signature)

    def sketch(found: set[str]) -> object:
        signature = RMinHash(CONFIG.permutations, 42)
        signature.update(list(found))
        return signature

    return usual(items, sketch, Named())


def with_nn_dup(items: Sequence[Item]) -> Done:
    """nn-dup's own functions: folded tokens of the classes, clusters by LSH, exact check.

    Its choice among a cluster (five of a family stay, and more are rescued) is left out: here the
    first stays, as everywhere else.
    """
    for name in ("ab", "ab.dup"):
        # Without running its __init__, which wants the whole of nn-dataset installed.
        package = types.ModuleType(name)
        package.__path__ = [str(Path(os.environ["NN_DUP"], *name.split(".")))]
        sys.modules[name] = package
    lsh = importlib.import_module("ab.dup.utils.lsh")
    textproc = importlib.import_module("ab.dup.utils.textproc")

    t0 = time.perf_counter()
    sets: dict[str, set[str]] = {}
    for id, code, _ in items:
        region = textproc.extract_model_region(code)
        names = textproc.collect_declared_names(region)
        plain = textproc.strip_comments_and_docstrings(region)
        sets[id] = textproc.shingles(textproc.python_token_stream(plain, names))
    t1 = time.perf_counter()
    signatures = {id: lsh.minhash_from_shingles(found) for id, found in sets.items()}
    t2 = time.perf_counter()
    clusters = lsh.cluster_near_duplicates_lsh(list(sets), signatures)
    kept = set(sets) - set().union(*clusters)
    limit = CONFIG.near_duplicate_threshold
    for cluster in clusters:
        chosen: list[str] = []
        for id in (i for i, _, _ in items if i in cluster):
            if all(textproc.jaccard(sets[id], sets[other]) <= limit for other in chosen):
                chosen.append(id)
        kept |= set(chosen)
    seconds = {
        "shingles": t1 - t0,
        "signatures": t2 - t1,
        "lsh and exact": time.perf_counter() - t2,
    }
    return Done(kept, seconds)


def normalized(items: Sequence[Item]) -> Done:
    """Archloop with names and numbers folded."""
    started = time.perf_counter()
    kept, _ = deduplicate(items, CONFIG, "normalized")
    return Done(set(kept), {"all": time.perf_counter() - started})


def disagreements(items: Sequence[Item], a: Done, b: Done) -> dict[str, int]:
    """Why networks were kept by one way only, by exact similarity to what each kept before.

    A network that a way kept although it had kept a near-duplicate of it before is that way's miss;
    the rest follows from a miss, as what is kept decides what comes after.
    """
    sets = {id: shingles(code, CONFIG.shingle_size) for id, code, _ in items}
    order = {id: i for i, (id, _, _) in enumerate(items)}
    limit, found = CONFIG.near_duplicate_threshold, {"ours": 0, "theirs": 0, "follow": 0}
    for id in a.kept ^ b.kept:
        mine, who = (a.kept, "ours") if id in a.kept else (b.kept, "theirs")
        before = (o for o in mine if order[o] < order[id])
        missed = any(jaccard(sets[id], sets[o]) > limit for o in before)
        found[who if missed else "follow"] += 1
    return found


def missed(items: Sequence[Item], kept: set[str]) -> int:
    """Pairs above the threshold that are both kept, by comparing every pair exactly."""
    sets = [shingles(code, CONFIG.shingle_size) for id, code, _ in items if id in kept]
    sets.sort(key=len)
    limit, count = CONFIG.near_duplicate_threshold, 0
    for i, one in enumerate(sets):
        for other in sets[i + 1 :]:
            if len(one) <= limit * len(other):
                break
            count += jaccard(one, other) > limit
    return count


def all_rows() -> Iterator[Row]:
    """Compare on all of LEMUR, one after the other in this process."""
    items = lemur_items()
    here, spread = ours(items)
    yield Row(
        f"near-duplicates removed from {len(items):,} networks: kept",
        f"{len(here.kept):,}; {missed(items, here.kept)} pairs missed",
    )
    others: list[tuple[str, Callable[[Sequence[Item]], Done]]] = []
    if importlib.util.find_spec("datasketch"):
        others.append(("datasketch", with_datasketch))
        if importlib.util.find_spec("rensa"):
            others.append(("rensa", with_rensa))
    for name, way in others:
        other = way(items)
        parts = ", ".join(f"{step} {spent:.1f}" for step, spent in other.seconds.items())
        yield Row(
            f"the same beside {name}, s",
            spread,
            f"{other.total:.1f} ({parts})",
            other.total / here.total,
            10.0 if name == "datasketch" else None,
        )
        found = disagreements(items, here, other)
        yield Row(
            f"decisions that differ from {name}'s: {sum(found.values())} of {len(items):,}",
            f"{found['ours']} missed here",
            f"{found['theirs']} missed there, {found['follow']} follow from these; "
            f"kept {len(other.kept):,}",
        )
    if "NN_DUP" in os.environ and Path(os.environ["NN_DUP"]).is_dir():
        folded, other = normalized(items), with_nn_dup(items)
        both = len(folded.kept & other.kept)
        either = len(folded.kept | other.kept)
        yield Row(
            "names and numbers folded, beside nn-dup 2.2.4, s",
            f"{folded.total:.2f}",
            f"{other.total:.1f}",
            other.total / folded.total,
        )
        yield Row(
            "kept by both of what either keeps",
            f"{len(folded.kept):,} kept",
            f"{len(other.kept):,} kept; {both:,} of {either:,} the same",
        )
    yield from speed_rows(items)


def speed_rows(items: Sequence[Item]) -> Iterator[Row]:
    """Rates of the single steps."""
    index = NoveltyIndex(CONFIG)
    started = time.perf_counter()
    sketches = [(id, index.sketch(code)) for id, code, _ in items]
    sketching = time.perf_counter() - started
    started = time.perf_counter()
    for id, sketch in sketches:
        index.add(id, sketch)
    adding = time.perf_counter() - started
    n = len(items)
    yield Row("shingles and signatures, networks/s", f"{n / sketching:,.0f}")
    yield Row("index, networks/s", f"{n / adding:,.0f}")
