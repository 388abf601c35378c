"""The corpus of each cycle: a file of the run directory, the same whenever it is written."""

from __future__ import annotations

from collections.abc import Sequence

from archloop.config import RandomSearch
from archloop.corpus.pairs import read_pairs, seeds_to_judge, write_pairs
from archloop.corpus.seed_corpus import accepted_pair, seed_pairs
from archloop.errors import UsageError
from archloop.evaluation.graphs import graphs_of
from archloop.evaluation.probing import seed_prober, seed_tracer
from archloop.loop.context import NO_ADAPTER, RunContext
from archloop.machine.downloads import sha256_of
from archloop.novelty.structure import structure_class
from archloop.search.history import History, Known
from archloop.search.prompts import parameter_cap
from archloop.store.run_dir import CORPORA
from archloop.types import Candidate, ChatPair, Message


def corpus_of(run: RunContext, cycle: int) -> list[ChatPair]:
    """The corpus a cycle starts from: the seed networks and all that earlier cycles accepted.

    It is written to the run directory on first use, and the same each time.

    Raises:
        UsageError: A file of it is not the one that the run had.
    """
    file = run.paths.corpus(cycle)
    if file.is_file():
        _check_corpus(run, cycle)
        return read_pairs(file)
    if cycle == 1:
        probe = seed_prober(run.executor, run.watch)
        trace = seed_tracer(run.executor, run.watch)
        pairs = seed_pairs(run.config, run.watch, probe, trace)
    else:
        new = [c for c in run.store.accepted() if c.cycle == cycle - 1]
        adapter = run.paths.adapter(cycle - 1).name if run.has_adapter else NO_ADAPTER
        llm = {"model": _writer(run), "adapter": adapter}
        asked = {r.index: r.messages for r in run.store.requests(cycle - 1)}
        pairs = corpus_of(run, cycle - 1) + [
            accepted_pair(c, _prompt_of(run, c, asked[c.index]), **llm) for c in new
        ]
    write_pairs(file, pairs)
    _check_corpus(run, cycle)
    return pairs


def _prompt_of(
    run: RunContext, candidate: Candidate, asked: Sequence[Message]
) -> Sequence[Message]:
    """The prompt that an accepted network answers.

    Where prompts ask for a structure it is the one that the network has, whatever it was asked
    for, so that the LLM learns what the words mean. A generator without an LLM had no prompt; its
    network answers the run's.
    """
    template = run.template
    if template.asks_structure and candidate.n_params is not None:
        budget = min(parameter_cap(candidate.n_params), run.config.task.max_params)
        return template.render(run.subject, budget, structure_class(candidate.measures))
    return asked or run.prompt


def _writer(run: RunContext) -> str:
    """Name of what wrote the networks: the LLM, or a generator without one."""
    config = run.config
    return config.engine if isinstance(config.search, RandomSearch) else config.llm.model


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


def history_of(run: RunContext) -> History:
    """What the strategy of a run may know."""
    return History(
        record=run.store,
        seed=run.config.seed,
        task=run.task.info.name,
        subject=run.subject,
        max_params=run.config.task.max_params,
        seed_networks=lambda: _seed_networks(run),
        corpus=lambda cycle: corpus_of(run, cycle),
    )


def _seed_networks(run: RunContext) -> list[Known]:
    """The seed networks with their graphs, traced once for all runs.

    What an earlier cycle accepted counts as it was written, not in its cleaned form, so it comes
    from the store.
    """
    seeds = seeds_to_judge(corpus_of(run, 1))
    graphs = graphs_of(
        list(seeds.values()),
        shape=run.input_shape,
        classes=run.task.info.classes,
        executor=run.executor,
        observer=run.watch,
    )
    return [Known(id, code, graph) for (id, code), graph in zip(seeds.items(), graphs, strict=True)]
