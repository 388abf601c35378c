"""From a seed source to the first corpus: every step counted, every dropped network explained.

read -> exact duplicates -> parse -> contract -> quarantine -> near-duplicates -> builds in the
sandbox (meta device, else processor) -> length -> budget -> structure -> pairs. Networks above the
budget can be narrowed to it, and structural edits can make more; both are counted apart and marked
in the pair's metadata. Near-duplicates are found among the cleaned sources, as a run compares
candidates with these. The same input gives byte-identical output.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from archloop.code.chat import code_sha256
from archloop.config import NoveltyConfig, SeedsConfig
from archloop.config.derived import derive_seed
from archloop.corpus.pairs import make_pair
from archloop.corpus.seeds.balance import counted, even
from archloop.corpus.seeds.children import Limits, Parent, Trace, children, measures_of
from archloop.corpus.seeds.infill import infill_prompt
from archloop.corpus.seeds.narrow import FACTORS, narrow
from archloop.corpus.seeds.prepare import Prepared, prepare_all
from archloop.corpus.seeds.report import Dropped, SeedReport
from archloop.corpus.seeds.source import SeedNetwork, SeedSource
from archloop.corpus.seeds.split import SHARES, split
from archloop.errors import UsageError
from archloop.novelty import NoveltyIndex, visit
from archloop.novelty.structure import structure_class
from archloop.search.prompts import CIFAR10, MNIST, PromptSubject, PromptTemplate, parameter_cap
from archloop.text import encodable
from archloop.types import ChatPair, Verdict, flag_name

PROBE_SUBJECT = CIFAR10
"""Seed networks are built and their parameters counted for this task, which their prompts
describe."""
NARROW_SHARE = 0.6
"""Networks are narrowed to this share of the budget: an LLM that learnt from networks narrowed to
just below it wrote 11 of 24 just above it (520,000 to 805,000 parameters for 500,000)."""
UNREADABLE = "cannot be read as source"
_NARROW_ROUND = 128
"""Networks narrowed at a time, so that few more are probed than needed."""

Probe = Callable[[Iterable[str]], Sequence[Verdict]]
CountTokens = Callable[[Sequence[str]], Sequence[int]]


@dataclass(frozen=True)
class Seed:
    """A network that passes through the steps."""

    name: str
    family: str
    code: str
    accuracy: float | None
    n_params: int | None = None
    """``None`` until it is built."""
    factors: tuple[float, float] | None = None
    """(channels, dense) of the width edit, if it was narrowed."""
    wide: str | None = None
    """The source before it was narrowed."""
    measures: dict[str, float] | None = None
    """Of its structure and cost; ``None``: it was not traced."""
    edits: tuple[str, ...] = ()
    """The structural edits that made it of another seed network."""


def build_corpus(
    source: SeedSource,
    *,
    seeds: SeedsConfig,
    novelty: NoveltyConfig,
    template: PromptTemplate,
    max_params: int,
    allow_flags: Collection[str] = (),
    probe: Probe,
    count_tokens: CountTokens,
    trace: Trace | None = None,
    processes: int = 1,
    run_seed: int = 0,
) -> tuple[list[ChatPair], SeedReport]:
    """Build the pairs of the first corpus.

    Args:
        source: Where networks come from; they are read as text.
        seeds: Which to keep.
        novelty: Parameters of near-duplicate removal.
        template: The run's prompt template.
        max_params: The task's parameter budget.
        allow_flags: Flags with which a network may be a seed network; others are quarantined.
        probe: Builds sources in the sandbox and returns their verdicts, in order; it may take the
            sources as they come, which overlaps with near-duplicate removal.
        count_tokens: Lengths of sources in tokens of the LLM.
        trace: Traces sources in the sandbox; needed only where their structure matters.
        processes: Networks cleaned at the same time.
        run_seed: For the choice of edits.

    Raises:
        UsageError: Nothing is left.
    """
    report = SeedReport(variant=seeds.variant)
    found = _cleaned(_read(source, report), seeds, allow_flags, processes, report)
    found = _distinct_that_build(found, seeds, novelty, probe, report)
    found = _short(found, seeds, count_tokens, report)
    if seeds.within_budget:
        large = {s.name: s for s in found if _size(s) > max_params}
        over = [f"over {max_params:,} parameters" if s.name in large else None for s in found]
        found = _drop(found, over, f"at most {max_params:,} parameters", report)
        if seeds.narrow:
            found += _narrowed(
                list(large.values()), found, seeds, novelty, max_params, probe, report
            )
    if _needs_structure(seeds, template):
        assert trace is not None, "the structure of seeds is asked for"
        found = _traced(found, trace, report)
        found = _balanced(found, seeds, report)
    elif seeds.most is not None:
        found = found[: seeds.most]
        report.steps.append((f"at most {seeds.most:,} networks", len(found)))
    rng = random.Random(derive_seed(run_seed, "edits"))
    limits = Limits(max_params if seeds.within_budget else None, seeds.max_macs)
    if seeds.augment and trace is not None:
        found += _augmented(found, seeds.augment, novelty, rng, trace, limits, report)
    if not found:
        raise UsageError("seeds: no network is left; see the reasons: " + str(dict(report.dropped)))
    report.families.update(s.family + _origin(s) for s in found)
    splits = split({s.name: s.code for s in found}, novelty) if seeds.split else {}
    report.splits.update({name: list(splits.values()).count(name) for name in SHARES if splits})
    pairs: list[ChatPair] = []
    for seed in sorted(found, key=lambda s: s.name):
        extra = {"split": splits[seed.name]} if splits else {}
        pairs += _pairs(seed, seeds, template, extra)
    if seeds.edit_pairs and trace is not None:
        made = _edit_pairs(found, seeds.edit_pairs, template, rng, trace, limits, report)
        # On the side of the network that they show.
        pairs += [
            replace(p, meta=p.meta | {"split": splits[p.meta["source"]]}) if splits else p
            for p in made
        ]
    report.pairs = len(pairs)
    return pairs, report


def _origin(seed: Seed) -> str:
    """How a network came about, where it is not the source's."""
    return " (augmented)" if seed.edits else " (narrowed)" if seed.factors is not None else ""


def _size(seed: Seed) -> int:
    """Parameters of a network that was built."""
    assert seed.n_params is not None, "built and counted"
    return seed.n_params


def _by_accuracy(network: SeedNetwork) -> tuple[bool, float, str]:
    """The most accurate first, those that nobody measured last, then by name."""
    accuracy = network.accuracy
    return (accuracy is None, 0.0 if accuracy is None else -accuracy, network.name)


def _read(source: SeedSource, report: SeedReport) -> list[SeedNetwork]:
    """All networks, the best of a group first, without copies of an earlier one."""
    ranked = sorted(_named(source.networks()), key=_by_accuracy)
    report.steps.append(("read", len(ranked)))
    return _first_of_each(ranked, [n.code for n in ranked], "not an exact duplicate", report)


def _named(networks: Iterable[SeedNetwork]) -> Iterator[SeedNetwork]:
    """Networks with unique names, and names and families that can be encoded in UTF-8."""
    names: set[str] = set()
    for network in networks:
        stem = name = encodable(network.name)
        number = 1
        while name in names:
            number += 1
            name = f"{stem}-{number}"
        names.add(name)
        yield replace(network, name=name, family=encodable(network.family))


def _first_of_each(
    networks: Sequence[SeedNetwork], codes: Sequence[str], step: str, report: SeedReport
) -> list[SeedNetwork]:
    first: dict[str, SeedNetwork] = {}
    for network, code in zip(networks, codes, strict=True):
        known = first.setdefault(code, network)
        if known is not network:
            dropped = Dropped(network.name, network.family, step, "exact duplicate", known.name)
            report.records.append(dropped)
    report.steps.append((step, len(first)))
    return list(first.values())


def _cleaned(
    networks: list[SeedNetwork],
    seeds: SeedsConfig,
    allow_flags: Collection[str],
    processes: int,
    report: SeedReport,
) -> list[Seed]:
    """Parse, contract and policy, quarantine; then duplicates among the cleaned sources."""
    unreadable = {n.name: Prepared(None, "parse", UNREADABLE, n.fault) for n in networks if n.fault}
    # Networks with similar names share methods, which are cleaned only once.
    by_name = sorted((n for n in networks if n.name not in unreadable), key=lambda n: n.name)
    prepared = prepare_all([n.code for n in by_name], seeds.style, processes)
    results = unreadable | {
        network.name: _unflagged(network, result, allow_flags)
        for network, result in zip(by_name, prepared, strict=True)
    }
    left = networks
    for step, label in (
        ("parse", "parses"),
        ("contract", "keeps the contract"),
        ("quarantine", "not quarantined"),
    ):
        for network in left:
            result = results[network.name]
            if result.step == step and result.reason is not None:
                record = Dropped(
                    network.name, network.family, label, result.reason, error=result.error
                )
                report.records.append(record)
        left = [n for n in left if results[n.name].step != step]
        report.steps.append((label, len(left)))
    codes = [results[n.name].code or "" for n in left]
    left = _first_of_each(left, codes, "not the same once cleaned", report)
    return [Seed(n.name, n.family, results[n.name].code or "", n.accuracy) for n in left]


def _unflagged(network: SeedNetwork, result: Prepared, allow_flags: Collection[str]) -> Prepared:
    """Quarantine a network with a flag that is not allowed."""
    flags = [name for name in map(flag_name, network.flags) if name not in allow_flags]
    if result.code is None or not flags:
        return result
    return Prepared(None, "quarantine", f"quarantined: flag {flags[0]}")


def _drop(
    seeds: list[Seed],
    faults: Iterable[str | None],
    step: str,
    report: SeedReport,
    errors: Mapping[str, str | None] | None = None,
) -> list[Seed]:
    """Keep the networks without a fault; record the others, with their error lines by name."""
    kept = []
    for seed, fault in zip(seeds, faults, strict=True):
        if fault is None:
            kept.append(seed)
        else:
            error = (errors or {}).get(seed.name)
            report.records.append(Dropped(seed.name, seed.family, step, fault, error=error))
    report.steps.append((step, len(kept)))
    return kept


def _distinct_that_build(
    seeds: list[Seed],
    config: SeedsConfig,
    novelty: NoveltyConfig,
    probe: Probe,
    report: SeedReport,
) -> list[Seed]:
    """Drop near-duplicates, then networks that do not build; building overlaps with the search."""
    by_name = {s.name: s for s in seeds}
    kept: list[Seed] = []
    step = "not a near-duplicate"

    def codes() -> Iterator[str]:
        items = [(s.name, s.code, s.accuracy) for s in seeds]
        for name, nearest in visit(items, novelty, config.view):
            seed = by_name[name]
            if nearest is None:
                kept.append(seed)
                yield seed.code
            else:
                record = Dropped(name, seed.family, step, "near-duplicate", nearest)
                report.records.append(record)

    verdicts = probe(codes())
    report.steps.append((step, len(kept)))
    found = [replace(s, n_params=v.n_params) for s, v in zip(kept, verdicts, strict=True)]
    faults = [None if v.outcome.is_valid else v.outcome.value for v in verdicts]
    errors = {s.name: v.error for s, v in zip(kept, verdicts, strict=True)}
    return _drop(found, faults, "builds at (N, 3, 32, 32)", report, errors)


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
            similarity, nearest = index.query(sketch)
            if index.is_near_duplicate(similarity):
                reason = "narrowed: near-duplicate"
                record = Dropped(seed.name, seed.family, "narrowed", reason, nearest)
                report.records.append(record)
            elif len(found) < seeds.narrow:
                index.add(seed.name, sketch)
                found.append(seed)
    report.steps.append(("with networks narrowed to the budget", len(kept) + len(found)))
    return found


def _fit(seeds: list[Seed], max_params: int, probe: Probe) -> list[Seed]:
    """Each network with the widest factors that build within the budget, found by bisection.

    Networks for which no factors do are left out.
    """
    ends = {s.name: (0, len(FACTORS)) for s in seeds}
    fitted: dict[str, Seed] = {}
    while open_ := [s for s in seeds if ends[s.name][0] < ends[s.name][1]]:
        middles = [sum(ends[s.name]) // 2 for s in open_]
        edited = [narrow(s.code, *FACTORS[m]) for s, m in zip(open_, middles, strict=True)]
        for seed, middle, code, verdict in zip(open_, middles, edited, probe(edited), strict=True):
            low, high = ends[seed.name]
            n_params = verdict.n_params
            if verdict.outcome.is_valid and n_params is not None and 0 < n_params <= max_params:
                ends[seed.name] = (low, middle)
                fitted[seed.name] = replace(
                    seed,
                    name=f"{seed.name}-narrow",
                    code=code,
                    n_params=n_params,
                    factors=FACTORS[middle],
                    wide=seed.code,
                )
            else:
                ends[seed.name] = (middle + 1, high)
    return [fitted[s.name] for s in seeds if s.name in fitted]


def _needs_structure(seeds: SeedsConfig, template: PromptTemplate) -> bool:
    """Whether the networks have to be traced."""
    wanted = seeds.max_macs is not None or seeds.balance != "none"
    return wanted or template.asks_structure or bool(seeds.augment or seeds.edit_pairs)


def _traced(seeds: list[Seed], trace: Trace, report: SeedReport) -> list[Seed]:
    """The networks with their measures, without those that cannot be traced.

    Nor those that lost their structure when they were narrowed: a group or a depthwise convolution
    may be none any more with other widths.
    """
    found = trace([s.code for s in seeds])
    known = [measures_of(verdict, graph) for verdict, graph in found]
    measured = [replace(s, measures=m) for s, m in zip(seeds, known, strict=True)]
    faults = [None if m else "not traced" for m in known]
    errors = {s.name: v.error for s, (v, _) in zip(seeds, found, strict=True)}
    left = _drop(measured, faults, "traced", report, errors)
    narrowed = [s for s in left if s.wide is not None]
    if not narrowed:
        return left
    wide = trace([s.wide or "" for s in narrowed])
    before = {s.name: measures_of(*found) for s, found in zip(narrowed, wide, strict=True)}
    lost = [
        s.name in before and structure_class(before[s.name] or {}) != _class_of(s) for s in left
    ]
    faults = ["narrowed: another structure" if is_lost else None for is_lost in lost]
    return _drop(left, faults, "narrowed with their structure", report)


def _balanced(seeds: list[Seed], config: SeedsConfig, report: SeedReport) -> list[Seed]:
    """Within the limit of cost, and of each class as many as are wanted."""
    limits = Limits(None, config.max_macs)
    if config.max_macs is not None:
        faults = [limits.fault(s.measures or {}) for s in seeds]
        seeds = _drop(seeds, faults, f"at most {config.max_macs:,} macs", report)
    report.classes_before.update(counted(seeds, _class_of))
    if config.balance == "structure":
        seeds = even(seeds, _class_of, config.most)
        report.steps.append(("evenly from each structure class", len(seeds)))
    elif config.most is not None:
        seeds = seeds[: config.most]
        report.steps.append((f"at most {config.most:,} networks", len(seeds)))
    report.classes.update(counted(seeds, _class_of))
    return seeds


def _class_of(seed: Seed) -> str | None:
    return None if seed.measures is None else structure_class(seed.measures)


def _parents(seeds: Iterable[Seed]) -> list[Parent]:
    return [Parent(s.name, s.code, s.measures) for s in seeds if s.measures is not None]


def _augmented(
    seeds: list[Seed],
    n: int,
    novelty: NoveltyConfig,
    rng: random.Random,
    trace: Trace,
    limits: Limits,
    report: SeedReport,
) -> list[Seed]:
    """At most ``n`` networks that edits make of these, novel among them."""
    index = NoveltyIndex(novelty)
    for seed in seeds:
        index.add(seed.name, seed.code)
    by_name = {s.name: s for s in seeds}
    made, faults = children(_parents(seeds), n, rng, trace, limits)
    report.edit_faults.update(faults)
    found: list[Seed] = []
    for number, child in enumerate(made):
        sketch = index.sketch(child.code)
        similarity, nearest = index.query(sketch)
        parent = by_name[child.parent.name]
        name = f"{child.name}-{number}"
        if index.is_near_duplicate(similarity):
            reason = "augmented: near-duplicate"
            report.records.append(Dropped(name, parent.family, "augmented", reason, nearest))
            continue
        index.add(name, sketch)
        edits = (*parent.edits, child.edit.name)
        n_params = int(child.measures["n_params"])
        found.append(
            Seed(
                name,
                parent.family,
                child.code,
                accuracy=None,
                n_params=n_params,
                measures=child.measures,
                edits=edits,
            )
        )
    report.steps.append(("with networks that edits made", len(seeds) + len(found)))
    return found


def _edit_pairs(
    seeds: list[Seed],
    n: int,
    template: PromptTemplate,
    rng: random.Random,
    trace: Trace,
    limits: Limits,
    report: SeedReport,
) -> list[ChatPair]:
    """At most ``n`` pairs whose answer is the edited network of the prompt."""
    made, faults = children(_parents(seeds), n, rng, trace, limits)
    report.edit_faults.update(faults)
    report.edit_pairs.update(child.edit.name for child in made)
    pairs = []
    for child in made:
        n_params = int(child.measures["n_params"])
        prompt = template.render_edit(
            PROBE_SUBJECT,
            parameter_cap(n_params),
            structure_class(child.measures),
            instruction=child.edit.instruction,
            code=child.parent.code,
        )
        meta: dict[str, Any] = {"source": child.parent.name, "type": "edit"}
        meta["edit"] = child.edit.name
        meta |= {"n_params": n_params, "code_sha256": code_sha256(child.code)}
        pairs.append(make_pair(prompt, child.code, meta | {"dataset": PROBE_SUBJECT.dataset}))
    return pairs


def _asked_class(seed: Seed) -> str | None:
    """The class that a seed's prompt asks for; one prompt in sixteen asks for any."""
    return None if code_sha256(seed.code)[8] == "0" else _class_of(seed)


def _pairs(
    seed: Seed, config: SeedsConfig, template: PromptTemplate, extra: dict[str, Any]
) -> list[ChatPair]:
    subjects: Sequence[PromptSubject] = (CIFAR10, MNIST)
    if config.variant != "two_prompts":
        subjects = (subjects[int(code_sha256(seed.code)[:8], 16) % 2],)
    meta: dict[str, Any] = {
        "source": seed.name,
        "family": seed.family,
        "n_params": seed.n_params,
        "lemur_first_epoch_accuracy": seed.accuracy,
        "narrowed": list(seed.factors) if seed.factors else None,
        **({"edits": list(seed.edits)} if seed.edits else {}),
        "code_sha256": code_sha256(seed.code),
        **extra,
    }
    cap = parameter_cap(_size(seed))
    pairs = [
        make_pair(
            template.render(subject, cap, _asked_class(seed)),
            seed.code,
            meta | {"dataset": subject.dataset},
        )
        for subject in subjects
    ]
    if config.variant == "full_infill":
        prompt = infill_prompt(template.render(subjects[0], cap)[0], seed.code)
        if prompt is not None:
            pairs.append(make_pair(prompt, seed.code, meta | {"type": "infill"}))
        pairs[0] = replace(pairs[0], meta=pairs[0].meta | {"type": "full"})
    return pairs
