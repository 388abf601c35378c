"""The stages of a cycle. Each does only what the store and the run directory do not already hold.

A stage may be interrupted at any moment and called again: finished work is found and kept,
unfinished work is done again with the same seeds.
"""

from __future__ import annotations

import json
import random
import shutil
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from archloop.corpus.pairs import read_pairs, seeds_to_judge, write_pairs
from archloop.corpus.seed_corpus import accepted_pair, seed_pairs
from archloop.errors import ConfigError, DivergedError, NothingToLearnError, UsageError
from archloop.evaluation.graphs import graphs_of
from archloop.llm.finetuning import FinetuneJob, FinetuneProgress, finetune
from archloop.llm.generation import require_engine
from archloop.llm.models import check_adapter, resolve_adapter
from archloop.loop.context import RunContext
from archloop.loop.pipeline import Evaluated, generate_and_evaluate
from archloop.machine.downloads import check_cache, sha256_of
from archloop.novelty import NoveltyJudge
from archloop.progress import Progress
from archloop.search import mix
from archloop.search.selection import ValidCandidate, select, threshold_of
from archloop.store.run_dir import CORPORA, RunDir
from archloop.types import Candidate, ChatPair, CycleStats, Outcome, Span


def prepare(run: RunContext) -> None:
    """Find out now what a later stage could not do without, before anything is made.

    Raises:
        UsageError: Naming the key: no such engine here, no such LLM, adapter, run or key; or the
            cache cannot be written.
        AssetError: The LLM cannot be had.
    """
    config, warm = run.config, run.config.llm.warm_start
    check_cache()
    require_engine(config.generation)
    if config.generation.engine == "openai":
        config.openai.api_key()
    source = config.generation.replay_from
    if source is not None and not RunDir(Path(source)).database.is_file():
        raise UsageError(f"generation.replay_from: no run in {Path(source).absolute()}")
    # It is copied once; later cycles have adapters of their own.
    if warm is not None and not run.store.cycles() and not run.paths.adapter(1).is_dir():
        resolve_adapter(warm)
    if warm is None and has_adapter(run) and config.seeds.source == "none":
        raise ConfigError(
            "seeds.source: without seeds there is nothing to fine-tune the LLM on; name an adapter "
            "to begin with in llm.warm_start"
        )
    if config.finetune.enabled or config.generation.engine not in ("openai", "replay"):
        _ = run.model_dir


class CycleWork(NamedTuple):
    """What the cycle has produced before it is committed."""

    adapter: Path | None
    """``None``: there is none, as the LLM is not here."""
    corpus: list[ChatPair]
    evaluated: Evaluated


class Selected(NamedTuple):
    """The valid candidates of a cycle as selection left them."""

    candidates: list[Candidate]
    """In index order."""
    n_near_duplicate: int
    """With ``novelty.enabled = false`` too, where they are not rejected."""


def corpus_of(run: RunContext, cycle: int) -> list[ChatPair]:
    """The corpus a cycle starts from: the seeds and everything accepted in earlier cycles.

    It is written to the run directory on first use, and the same each time.
    """
    file = run.paths.corpus(cycle)
    if file.is_file():
        _check_corpus(run, cycle)
        return read_pairs(file)
    if cycle == 1:
        pairs = seed_pairs(run.config, run.observer)
    else:
        new = [c for c in run.store.accepted() if c.cycle == cycle - 1]
        adapter = run.paths.adapter(cycle - 1)
        name = adapter.name if has_adapter(run) else NO_ADAPTER
        llm = {"model": run.config.llm.model, "adapter": name}
        pairs = corpus_of(run, cycle - 1) + [accepted_pair(c, run.prompt, **llm) for c in new]
    write_pairs(file, pairs)
    _check_corpus(run, cycle)
    return pairs


def _check_corpus(run: RunContext, cycle: int) -> None:
    """Keep the hash of a corpus when it is first there, and refuse another one later.

    Raises:
        UsageError: It is not what the run had, so that its cycles would not follow from each other.
    """
    file = run.paths.corpus(cycle)
    kept: dict[str, str] = run.store.get_meta(CORPORA, {})
    committed = {stats.cycle: stats.corpus_sha256 for stats in run.store.cycles()}
    found, before = sha256_of(file), kept.get(file.name, committed.get(cycle))
    if before is None:
        run.store.set_meta(CORPORA, kept | {file.name: found})
    elif found != before:
        raise UsageError(f"{file}: not the corpus that this run had (its SHA-256 was {before})")


NO_ADAPTER = "none"
"""Stands for the adapter's name in a run without adapters."""


def has_adapter(run: RunContext) -> bool:
    """Whether the run's LLM is here; it is not on a server or when such a run is replayed."""
    config = run.config
    kept = config.finetune.enabled or config.llm.warm_start is not None
    return config.generation.engine != "openai" and (kept or config.generation.engine != "replay")


def adapter_of(run: RunContext, cycle: int, corpus: list[ChatPair]) -> Path | None:
    """The adapter that generates in a cycle; fine-tuned, or taken over, on first use."""
    if not has_adapter(run):
        return None
    target = run.paths.adapter(cycle)
    if target.is_dir():
        # Left by a kill between the adapter and its end.
        shutil.rmtree(target.with_name(f"{target.name}.checkpoints"), ignore_errors=True)
        return target
    target.parent.mkdir(exist_ok=True)
    config, warm = run.config.finetune, run.config.llm.warm_start
    if cycle == 1 and warm:
        return _copy_adapter(resolve_adapter(warm), target)
    if cycle > 1 and not config.enabled:
        return _copy_adapter(run.paths.adapter(1), target)
    goes_on = config.init == "previous" and cycle > 1
    training = _training_mix(run, cycle, corpus, goes_on=goes_on)
    if cycle > 1 and not training:
        run.observer.message(f"cycle {cycle}: nothing new was accepted; the adapter stays")
        return _copy_adapter(run.paths.adapter(cycle - 1), target)
    file = run.paths.corpus(cycle)
    if training != corpus:
        file = file.with_name(f"cycle_{cycle:02d}.training.jsonl")
        write_pairs(file, training)
    parent = run.paths.adapter(cycle - 1) if goes_on else None
    return _fine_tuned(run, cycle, file, parent)


def _fine_tuned(run: RunContext, cycle: int, corpus: Path, parent: Path | None) -> Path:
    """The adapter that a cycle's fine-tune makes; the last one where it makes none."""
    target = run.paths.adapter(cycle)
    job = FinetuneJob(
        model_dir=run.model_dir,
        corpus=corpus,
        output=target,
        config=run.config.finetune,
        dtype=run.config.llm.dtype,
        seed=run.seed("finetune", cycle),
        parent=parent,
        lineage={"cycle": cycle, "corpus_of_run_sha256": sha256_of(run.paths.corpus(cycle))},
    )

    def on_progress(p: FinetuneProgress) -> None:
        run.observer.update(
            _progress(
                run, cycle, "fine-tune", p.step, p.total_steps, "steps",
                tokens_per_second=p.tokens_per_second, detail=p.detail,
            )
        )  # fmt: skip

    run.observer.update(
        _progress(run, cycle, "fine-tune", 0, None, "steps", detail="loading the LLM")
    )
    begin = time.time()
    try:
        result = finetune(job, on_progress)
    except (DivergedError, NothingToLearnError) as error:
        if cycle == 1:
            raise
        run.observer.message(f"cycle {cycle}: {error}; the last adapter stays")
        return _copy_adapter(run.paths.adapter(cycle - 1), target, rejected=str(error))
    finally:
        run.store.add_span(Span(cycle, "fine-tune", None, begin, time.time()))
    run.observer.message(
        f"cycle {cycle}: fine-tuned on {result.n_pairs} pairs, {result.steps} steps, "
        f"loss {result.loss:.3f}, {result.seconds:.0f} s"
    )
    return target


def _training_mix(
    run: RunContext, cycle: int, corpus: list[ChatPair], *, goes_on: bool
) -> list[ChatPair]:
    """The pairs that a cycle's fine-tune sees."""
    rng, config = random.Random(run.seed("replay", cycle)), run.config.finetune
    weighting = run.config.selection.weighting
    if not goes_on:
        return mix.whole_corpus(corpus, weighting, rng)
    return mix.new_and_replayed(
        corpus,
        _not_learnt(run, cycle),
        replay=config.replay,
        replay_seeds=config.replay_seeds,
        weighting=weighting,
        rng=rng,
    )


def _not_learnt(run: RunContext, cycle: int) -> set[int]:
    """The cycles whose accepted networks the last adapter has not seen.

    That is the one before, and further back where fine-tunes were rejected.
    """
    cycles = {cycle - 1}
    while (before := min(cycles)) > 1:
        lineage = run.paths.adapter(before) / "lineage.json"
        if not lineage.is_file() or "rejected" not in json.loads(lineage.read_text()):
            break
        cycles.add(before - 1)
    return cycles


def _copy_adapter(source: Path, target: Path, **notes: str) -> Path:
    check_adapter(source)
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(source, partial)
    lineage = partial / "lineage.json"
    if lineage.is_file():
        text = json.loads(lineage.read_text()) | {"taken_over_from": source.name, **notes}
        lineage.write_text(json.dumps(text, indent=2) + "\n")
    partial.rename(target)
    return target


def produce(run: RunContext, cycle: int) -> CycleWork:
    """Stages 1 to 5: adapter, completions, static checks, sandbox, training."""
    corpus = corpus_of(run, cycle)
    adapter = adapter_of(run, cycle, corpus)
    return CycleWork(adapter, corpus, generate_and_evaluate(run, cycle, adapter))


def choose(run: RunContext, cycle: int, corpus: list[ChatPair]) -> Selected:
    """Stages 6 and 7: novelty and selection of the valid candidates, in index order."""
    run.observer.update(_progress(run, cycle, "select", 0, None, ""))
    judge = NoveltyJudge(run.config.novelty)
    # Of what earlier cycles accepted the source as written counts, not its cleaned form.
    seeds = seeds_to_judge(p for p in corpus if not p.meta.get("generated"))
    graphs = graphs_of(
        list(seeds.values()),
        shape=run.input_shape,
        classes=run.task.info.classes,
        config=run.config.sandbox,
        observer=run.observer,
    )
    for (id_, code), graph in zip(seeds.items(), graphs, strict=True):
        judge.add_known(id_, code, graph)
    for known in run.store.accepted():
        assert known.code is not None
        judge.add_known(known.id, known.code, known.graph)
    judge.start_cycle()
    valid = {c.id: c for c in run.store.candidates(cycle) if c.outcome.is_valid}
    rows = [ValidCandidate.of(c) for c in valid.values()]
    earlier = [stats.accuracies for stats in run.store.cycles() if stats.cycle < cycle]
    decisions = select(
        rows,
        judge,
        threshold_of(run.config.selection, [*earlier, [r.first_epoch_accuracy for r in rows]]),
        max_train_seconds=run.config.selection.max_train_seconds,
        reject_near_duplicates=run.config.novelty.enabled,
        rejection_count=_rejections_before(run, cycle),
    )
    judged = [
        replace(
            valid[d.id],
            outcome=d.outcome,
            **d.scores.for_row(),
            rejection_count=d.rejection_count,
        )
        for d in decisions
    ]
    return Selected(judged, sum(d.scores.is_near_duplicate for d in decisions))


def _rejections_before(run: RunContext, cycle: int) -> int:
    """Near-duplicates of earlier cycles since the last accepted candidate."""
    count = 0
    for candidate in run.store.candidates():
        if candidate.cycle >= cycle:
            break
        if candidate.outcome is Outcome.ACCEPTED:
            count = 0
        count += candidate.outcome is Outcome.NEAR_DUPLICATE
    return count


def commit(run: RunContext, cycle: int, work: CycleWork, selected: Selected) -> CycleStats:
    """Stage 8: the cycle's statistics and selection, in one transaction."""
    everything = run.store.candidates(cycle)
    outcomes = Counter(c.outcome for c in everything if not c.outcome.is_valid)
    outcomes += Counter(c.outcome for c in selected.candidates)
    accuracies = tuple(c.first_epoch_accuracy or 0.0 for c in selected.candidates)
    _write_candidates(run.paths.candidates(cycle), everything)
    stats = CycleStats(
        cycle=cycle,
        n_gen=len(everything),
        n_valid=len(selected.candidates),
        n_at_floor=sum(a >= run.config.selection.min_accuracy for a in accuracies),
        n_near_duplicate=selected.n_near_duplicate,
        n_accepted=outcomes[Outcome.ACCEPTED],
        accuracies=accuracies,
        corpus_size=len(work.corpus),
        adapter=work.adapter.name if work.adapter else NO_ADAPTER,
        corpus_sha256=sha256_of(run.paths.corpus(cycle)),
        outcomes={k.value: n for k, n in outcomes.items()},
        wall_seconds=work.evaluated.wall_seconds,
        n_tokens=sum(c.n_tokens for c in run.store.completions(cycle)),
    )
    run.store.commit_cycle(stats, selected.candidates)
    return stats


def _write_candidates(folder: Path, candidates: list[Candidate]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for candidate in candidates:
        if candidate.code is not None:
            (folder / f"{candidate.id}.py").write_text(candidate.code + "\n", "utf-8", "replace")


def finish(run: RunContext) -> None:
    """After the last cycle: the corpus with everything accepted and, if configured, its adapter."""
    cycle = run.config.loop.cycles + 1
    corpus = corpus_of(run, cycle)
    if run.config.loop.final_finetune and run.config.finetune.enabled:
        adapter_of(run, cycle, corpus)


def _progress(
    run: RunContext,
    cycle: int,
    stage: str,
    done: int,
    total: int | None,
    unit: str,
    tokens_per_second: float | None = None,
    detail: str = "",
) -> Progress:
    return Progress(
        stage,
        cycle=min(cycle, run.config.loop.cycles),
        cycles=run.config.loop.cycles,
        done=done,
        total=total,
        unit=unit,
        tokens_per_second=tokens_per_second,
        detail=detail,
    )
