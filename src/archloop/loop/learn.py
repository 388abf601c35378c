"""The adapter of each cycle: taken over, or fine-tuned on the lessons of the strategy."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from archloop.corpus.pairs import write_rows
from archloop.errors import DivergedError, NothingToLearnError
from archloop.llm.finetuning.learner import LearningJob
from archloop.llm.models import check_adapter, resolve_adapter
from archloop.loop.context import RunContext
from archloop.loop.corpora import corpus_of, history_of
from archloop.machine.downloads import sha256_of
from archloop.progress import Progress
from archloop.types import Lesson, Span


def adapter_of(run: RunContext, cycle: int) -> Path | None:
    """The adapter that generates in a cycle; made, or taken over, on first use.

    Returns:
        Its folder; ``None``: the LLM writes without one, or is not here.
    """
    run.watch.corpus(len(corpus_of(run, cycle)))
    if not run.has_adapter:
        return None
    target = run.paths.adapter(cycle)
    if target.is_dir():
        # Left by a kill between the adapter and its end.
        shutil.rmtree(target.with_name(f"{target.name}.checkpoints"), ignore_errors=True)
        return target
    target.parent.mkdir(exist_ok=True)
    warm = run.config.llm.warm_start
    if cycle == 1 and warm:
        return _copy_adapter(resolve_adapter(warm), target)
    lessons = run.strategy.lessons(history_of(run), cycle)
    if lessons is None:
        return _copy_adapter(run.paths.adapter(1), target)
    if cycle > 1 and not lessons:
        run.watch.message(f"{_name(run, cycle)}: nothing new was accepted; the adapter stays")
        return _copy_adapter(run.paths.adapter(cycle - 1), target)
    return _learnt(run, cycle, lessons)


def _learnt(run: RunContext, cycle: int, lessons: Sequence[Lesson]) -> Path:
    """The adapter that a cycle's lessons make; the last one where they make none."""
    target, last = run.paths.adapter(cycle), run.paths.adapter(cycle - 1)
    run.make_room()
    job = LearningJob(
        lessons=_lessons_file(run, cycle, lessons),
        parent=last if cycle > 1 and run.config.finetune.init == "previous" else None,
        out=target,
        seed=run.seed("finetune", cycle),
        lineage={"cycle": cycle, "corpus_of_run_sha256": sha256_of(run.paths.corpus(cycle))},
    )
    begin = time.time()
    try:
        _learn(run, cycle, job)
    except (DivergedError, NothingToLearnError) as error:
        if cycle == 1:
            raise
        run.watch.message(f"{_name(run, cycle)}: {error}; the last adapter stays")
        return _copy_adapter(last, target, rejected=str(error))
    finally:
        run.store.add_span(Span(cycle, "fine-tune", None, begin, time.time()))
    return target


def _learn(run: RunContext, cycle: int, job: LearningJob) -> None:
    run.watch.update(Progress("fine-tune", detail="loading the LLM"))
    result = run.learner.learn(job, lambda found: run.watch.update(found.snapshot()))
    run.watch.message(
        f"{_name(run, cycle)}: fine-tuned on {result.n_pairs} pairs, {result.steps} steps, "
        f"loss {result.loss:.3f}, {result.seconds:.0f} s"
    )


def _name(run: RunContext, cycle: int) -> str:
    """Of a cycle, or of the end of the run, which has the number after the last one's."""
    return "end of the run" if cycle > run.config.loop.cycles else f"cycle {cycle}"


def _lessons_file(run: RunContext, cycle: int, lessons: Sequence[Lesson]) -> Path:
    """The corpus of the cycle where the lessons are all of it, else a file beside it."""
    corpus = run.paths.corpus(cycle)
    rows = [lesson.to_json() for lesson in lessons]
    if rows == [pair.to_json() for pair in corpus_of(run, cycle)]:
        return corpus
    file = corpus.with_name(f"cycle_{cycle:02d}.training.jsonl")
    write_rows(file, rows)
    return file


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
