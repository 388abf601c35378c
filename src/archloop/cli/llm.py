"""``archloop generate`` and ``finetune``: the LLM by itself."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from archloop.cli.options import (
    FilePath,
    config_option,
    echo_json,
    echo_text,
    json_option,
    not_empty,
    resumable,
    set_option,
)

if TYPE_CHECKING:
    from archloop.types import Completion, Request

_ADAPTER = click.option(
    "--adapter",
    metavar="NAME|DIR",
    callback=not_empty,
    help="Packaged adapter or adapter folder; default: the configuration's llm.warm_start.",
)


@click.command("generate")
@click.option("-n", "--count", default=4, show_default=True, type=click.IntRange(1, 100_000))
@_ADAPTER
@click.option("--out", type=FilePath(file_okay=False), help="Write the code here.")
@config_option
@set_option
@json_option
def generate_command(
    count: int,
    adapter: str | None,
    out: Path | None,
    source: str,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Sample networks from the LLM for the configured task; nothing is executed."""
    from archloop.cli.screen import open_screen
    from archloop.config import load_config
    from archloop.config.derived import derive_seed
    from archloop.errors import UsageError
    from archloop.llm.generation.session import GeneratorSession
    from archloop.llm.models import resolve_model
    from archloop.loop.context import task_subject
    from archloop.pace import CandidatesPace
    from archloop.progress import Progress
    from archloop.report import spending_line
    from archloop.search.prompts import PromptTemplate
    from archloop.types import Request

    config = load_config(source, overrides)
    traits = config.engine_traits
    if not traits.takes_adapters and adapter:
        raise UsageError(
            f"--adapter: not with generation.engine = {config.engine!r}, whose LLM is elsewhere"
        )
    adapter_dir = _adapter(adapter, config.llm.warm_start)
    size = config.generation.batch_size
    subject = task_subject(config)
    template = PromptTemplate.from_config(config.prompt)
    messages = tuple(template.render(subject, config.task.max_params))
    requests = [
        Request(
            cycle=1,
            index=index,
            seed=derive_seed(config.seed, "generate", 1, index),
            task=config.task.name,
            messages=messages,
            temperature=config.generation.temperature,
        )
        for index in range(count)
    ]
    model_dir = resolve_model(config.llm) if traits.loads_llm else None
    batches = [requests[i : i + size] for i in range(0, count, size)]
    if out:
        out.mkdir(parents=True, exist_ok=True)
    done, spent, began = 0, None, time.monotonic()
    pace = CandidatesPace(
        count,
        at_once=config.written_at_once,
        workers=0,
        most_tokens=config.generation.max_new_tokens,
    )
    with open_screen() as screen, GeneratorSession(config, model_dir, subject=subject) as session:

        def show(detail: str = "") -> None:
            now = time.monotonic()
            left = pace.left(now)
            screen.update(
                Progress(
                    "generate",
                    done=done,
                    total=count,
                    unit="completions",
                    n_tokens=pace.n_tokens or None,
                    tokens_per_second=pace.tokens_per_second(now),
                    detail=detail,
                    share=pace.written_share(),
                    elapsed=now - began,
                    eta=None if left is None else left.seconds,
                )
            )

        def writing(n_tokens: int) -> None:
            pace.writing(time.monotonic(), n_tokens)
            show("" if traits.local or done else "asking the server")

        show("loading the LLM" if traits.local else "asking the server")
        try:
            for found in session.generate(batches, adapter_dir, tell=writing):
                spent = found.spent
                if found.completion is not None:
                    done += 1
                    pace.wrote(time.monotonic(), found.completion.n_tokens)
                    show()
                    with screen.aside():
                        _show(found.completion, requests, out, as_json)
        finally:
            if spent is not None:
                screen.message(spending_line(spent, priced=config.openai.has_prices))


def _adapter(named: str | None, warm_start: str | None) -> Path | None:
    """The folder of the adapter given with --adapter, else of the configured one."""
    from archloop.llm.models import resolve_adapter

    if named is not None:
        return resolve_adapter(named, "--adapter")
    return resolve_adapter(warm_start) if warm_start else None


def _show(completion: Completion, requests: list[Request], out: Path | None, as_json: bool) -> None:
    """Write a completion's code, and print the completion or the file's name."""
    from archloop.code.chat import extract_code
    from archloop.files import write_text

    code = extract_code(completion.text)
    file = out / f"{completion.index:04d}.py" if out and code is not None else None
    if file and code is not None:
        write_text(file, code + "\n")
    if as_json:
        row = {"index": completion.index, "seed": requests[completion.index].seed, "code": code}
        row |= {"text": completion.text, "n_tokens": completion.n_tokens}
        row |= {"finish_reason": completion.finish_reason, "file": str(file) if file else None}
        echo_json(row)
    elif file:
        echo_text(str(file))
    else:
        echo_text(f"# completion {completion.index}\n{code or completion.text}\n")


@click.command("finetune")
@click.option("--corpus", required=True, type=FilePath(), metavar="CORPUS.jsonl")
@click.option("--out", required=True, type=FilePath(), metavar="DIR")
@_ADAPTER
@config_option
@set_option
@json_option
def finetune_command(
    corpus: Path,
    out: Path,
    adapter: str | None,
    source: str,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """LoRA fine-tune the LLM on a chat corpus; the adapter loads in plain PEFT.

    With --adapter, or finetune.init = "previous", it goes on from that adapter, otherwise from the
    base LLM. Fine-tunes are resumable: run the same command again.
    """
    from archloop.cli.screen import open_screen
    from archloop.config import load_config
    from archloop.errors import UsageError
    from archloop.llm.finetuning import FinetuneJob, finetune
    from archloop.llm.models import resolve_model
    from archloop.machine.hardware import resolved_dtype
    from archloop.progress import Progress

    config = load_config(source, overrides)
    if out.exists():
        raise UsageError(f"{out}: exists already; name a new folder")
    warm_start = config.llm.warm_start if config.finetune.init == "previous" else None
    parent = _adapter(adapter, warm_start)
    out.parent.mkdir(parents=True, exist_ok=True)
    job = FinetuneJob(
        model_dir=resolve_model(config.llm),
        corpus=corpus,
        output=out,
        config=config.finetune,
        dtype=resolved_dtype(config.llm.dtype),
        seed=config.seed,
        parent=parent,
    )
    with resumable(), open_screen() as screen:
        screen.update(Progress("fine-tune", detail="loading the LLM"))
        result = finetune(job, lambda found: screen.update(found.snapshot()))
    if as_json:
        echo_json(result.to_json())
    else:
        echo_text(
            f"{result.adapter}: {result.n_pairs} pairs ({result.n_too_long} too long), "
            f"{result.steps} steps, loss {result.loss:.4f}, {result.seconds:.0f} s"
        )
