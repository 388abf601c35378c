"""From a seed source to the first corpus: every step counted, every dropped network explained.

read -> clean -> exact duplicates -> static checks -> near-duplicates -> builds in the sandbox (meta
device) -> budget -> length -> pairs; networks above the budget can be narrowed to it, and are
counted apart and marked in the pair's metadata. The same input gives byte-identical output.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from archloop.chat import code_sha256, make_pair
from archloop.code_policy import check
from archloop.config import NoveltyConfig, SeedsConfig
from archloop.errors import UsageError
from archloop.novelty import NoveltyIndex, deduplicate
from archloop.prompts import CIFAR10, MNIST, PromptSubject, PromptTemplate, parameter_cap
from archloop.seeds.clean import clean_source
from archloop.seeds.narrow import FACTORS, narrow
from archloop.seeds.source import SeedSource
from archloop.types import ChatPair, Verdict

PROBE_SUBJECT = CIFAR10
"""Seeds are built and counted at this task's shape, the one their prompts describe."""
NARROW_SHARE = 0.6
"""Networks are narrowed to this share of the budget: an LLM that learnt from networks narrowed to
just below it wrote 11 of 24 just above it (520,000 to 805,000 parameters for 500,000)."""
_NARROW_ROUND = 128
"""Networks narrowed at a time, so that no more are probed than wanted."""

Probe = Callable[[Sequence[str]], Sequence[Verdict]]
CountTokens = Callable[[Sequence[str]], Sequence[int]]


@dataclass(frozen=True)
class Seed:
    """One network on its way into the corpus."""

    name: str
    family: str
    code: str
    accuracy: float | None
    n_params: int = 0
    factors: tuple[float, float] | None = None
    """(channels, dense) of the width edit, if it was narrowed."""


@dataclass
class SeedReport:
    """What happened to every network."""

    steps: list[tuple[str, int]] = field(default_factory=list)
    """(step, networks left after it), in order."""
    dropped: Counter[str] = field(default_factory=Counter)
    """Networks dropped, by reason."""
    families: Counter[str] = field(default_factory=Counter)
    """Networks in the corpus, by family; narrowed ones as ``family (narrowed)``."""
    pairs: int = 0

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values."""
        steps = [{"step": step, "networks": count} for step, count in self.steps]
        return {
            "steps": steps,
            "dropped": dict(self.dropped.most_common()),
            "families": dict(self.families.most_common()),
            "pairs": self.pairs,
        }

    def to_markdown(self) -> str:
        """The report for reading."""
        lines = ["# Seed corpus", "", "| step | networks left |", "|---|---|"]
        lines += [f"| {step} | {count:,} |" for step, count in self.steps]
        lines += ["", f"Prompt-code pairs: {self.pairs:,}", "", "| dropped because | networks |"]
        lines += ["|---|---|", *(f"| {k} | {n:,} |" for k, n in self.dropped.most_common())]
        lines += ["", "| family | networks in the corpus |", "|---|---|"]
        lines += [f"| {k} | {n:,} |" for k, n in self.families.most_common()]
        return "\n".join(lines) + "\n"


def build_corpus(
    source: SeedSource,
    *,
    seeds: SeedsConfig,
    novelty: NoveltyConfig,
    template: PromptTemplate,
    max_params: int,
    probe: Probe,
    count_tokens: CountTokens,
) -> tuple[list[ChatPair], SeedReport]:
    """Build the pairs of the first corpus.

    Args:
        source: Where networks come from; they are read as text.
        seeds: Which to keep.
        novelty: Parameters of near-duplicate removal.
        template: The run's prompt template.
        max_params: The task's parameter budget.
        probe: Builds sources in the sandbox and returns their verdicts, in order.
        count_tokens: Lengths of sources in tokens of the LLM.

    Raises:
        UsageError: Nothing is left.
    """
    report = SeedReport()
    found = _read(source, report)
    found = _drop(found, [_static_fault(s.code) for s in found], "static checks", report)
    found = _distinct(found, novelty, report)
    verdicts = probe([s.code for s in found])
    found = [replace(s, n_params=v.n_params or 0) for s, v in zip(found, verdicts, strict=True)]
    faults = [None if v.outcome.is_valid else v.outcome.value for v in verdicts]
    found = _drop(found, faults, "builds at (N, 3, 32, 32)", report)
    found = _short(found, seeds, count_tokens, report)
    if seeds.within_budget:
        large = [s for s in found if s.n_params > max_params]
        over = [f"over {max_params:,} parameters" if s in set(large) else None for s in found]
        found = _drop(found, over, f"at most {max_params:,} parameters", report)
        if seeds.narrow:
            found += _narrowed(large, found, seeds, novelty, max_params, probe, report)
    if not found:
        raise UsageError("seeds: no network is left; see the reasons: " + str(dict(report.dropped)))
    report.families.update(s.family + " (narrowed)" * (s.factors is not None) for s in found)
    pairs = [p for s in sorted(found, key=lambda s: s.name) for p in _pairs(s, seeds, template)]
    report.pairs = len(pairs)
    return pairs, report


def _read(source: SeedSource, report: SeedReport) -> list[Seed]:
    networks = list(source.networks())
    report.steps.append(("read", len(networks)))
    seeds: list[Seed] = []
    seen: set[str] = set()
    ranked = sorted(networks, key=lambda n: (-(n.accuracy or 0.0), n.name))
    for network in ranked:
        try:
            code = clean_source(network.code)
        except (SyntaxError, ValueError, RecursionError):
            report.dropped["does not parse"] += 1
            continue
        if code in seen:
            report.dropped["exact duplicate"] += 1
            continue
        seen.add(code)
        seeds.append(Seed(network.name, network.family, code, network.accuracy))
    report.steps.append(("parses, not an exact duplicate", len(seeds)))
    return seeds


def _static_fault(code: str) -> str | None:
    verdict = check(code)
    if verdict is None:
        return None
    reason = (verdict.error or "").partition(" (line")[0].partition(";")[0]
    return f"{verdict.outcome.value}: {reason}"


def _drop(
    seeds: list[Seed], faults: Iterable[str | None], step: str, report: SeedReport
) -> list[Seed]:
    """Keep the seeds without a fault; count the others."""
    kept = []
    for seed, fault in zip(seeds, faults, strict=True):
        if fault is None:
            kept.append(seed)
        else:
            report.dropped[fault] += 1
    report.steps.append((step, len(kept)))
    return kept


def _distinct(seeds: list[Seed], novelty: NoveltyConfig, report: SeedReport) -> list[Seed]:
    kept, _ = deduplicate([(s.name, s.code, s.accuracy) for s in seeds], novelty)
    names = set(kept)
    faults = [None if s.name in names else "near-duplicate" for s in seeds]
    return _drop(seeds, faults, "not a near-duplicate", report)


def _short(
    seeds: list[Seed], config: SeedsConfig, count_tokens: CountTokens, report: SeedReport
) -> list[Seed]:
    if config.max_tokens is None:
        return seeds
    limit = config.max_tokens
    lengths = count_tokens([s.code for s in seeds])
    faults = [f"over {limit} tokens" if n > limit else None for n in lengths]
    return _drop(seeds, faults, f"at most {limit} tokens", report)


def _narrowed(
    large: list[Seed],
    kept: list[Seed],
    seeds: SeedsConfig,
    novelty: NoveltyConfig,
    max_params: int,
    probe: Probe,
    report: SeedReport,
) -> list[Seed]:
    """Up to ``seeds.narrow`` of the large networks, narrowed to the budget and novel.

    They are taken in the order of their content hash, so no family is preferred.
    """
    index = NoveltyIndex(novelty)
    for seed in kept:
        index.add(seed.name, seed.code)
    found: list[Seed] = []
    waiting = sorted(large, key=lambda s: hashlib.sha256(s.code.encode()).digest())
    while waiting and len(found) < seeds.narrow:
        batch, waiting = waiting[:_NARROW_ROUND], waiting[_NARROW_ROUND:]
        for seed in _fit(batch, int(NARROW_SHARE * max_params), probe):
            sketch = index.sketch(seed.code)
            if index.is_near_duplicate(index.query(sketch)[0]):
                report.dropped["narrowed: near-duplicate"] += 1
            elif len(found) < seeds.narrow:
                index.add(seed.name, sketch)
                found.append(seed)
    report.steps.append(("with networks narrowed to the budget", len(kept) + len(found)))
    return found


def _fit(seeds: list[Seed], max_params: int, probe: Probe) -> list[Seed]:
    """Each seed at the widest factors that build within the budget, found by bisection.

    Those that never do are left out.
    """
    ends = {s.name: (0, len(FACTORS)) for s in seeds}
    fitted: dict[str, Seed] = {}
    while open_ := [s for s in seeds if ends[s.name][0] < ends[s.name][1]]:
        middles = [sum(ends[s.name]) // 2 for s in open_]
        edited = [narrow(s.code, *FACTORS[m]) for s, m in zip(open_, middles, strict=True)]
        for seed, middle, code, verdict in zip(open_, middles, edited, probe(edited), strict=True):
            low, high = ends[seed.name]
            n_params = verdict.n_params or 0
            if verdict.outcome.is_valid and 0 < n_params <= max_params:
                ends[seed.name] = (low, middle)
                fitted[seed.name] = replace(
                    seed,
                    name=f"{seed.name}-narrow",
                    code=code,
                    n_params=n_params,
                    factors=FACTORS[middle],
                )
            else:
                ends[seed.name] = (middle + 1, high)
    return [fitted[s.name] for s in seeds if s.name in fitted]


def _pairs(seed: Seed, config: SeedsConfig, template: PromptTemplate) -> list[ChatPair]:
    subjects: Sequence[PromptSubject] = (CIFAR10, MNIST)
    if config.variant == "one_prompt":
        subjects = (subjects[int(code_sha256(seed.code)[:8], 16) % 2],)
    meta: dict[str, Any] = {
        "source": seed.name,
        "family": seed.family,
        "n_params": seed.n_params,
        "lemur_first_epoch_accuracy": seed.accuracy,
        "narrowed": list(seed.factors) if seed.factors else None,
        "code_sha256": code_sha256(seed.code),
    }
    cap = parameter_cap(seed.n_params)
    return [
        make_pair(template.render(subject, cap), seed.code, meta | {"dataset": subject.dataset})
        for subject in subjects
    ]
