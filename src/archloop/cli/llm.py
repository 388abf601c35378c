"""``archloop generate`` and ``finetune``: the LLM by itself."""

from __future__ import annotations

from pathlib import Path

import click

from archloop.cli.options import config_option, echo_json, json_option, set_option

_ADAPTER = click.option(
    "--adapter",
    metavar="NAME|DIR",
    help="Packaged adapter or adapter folder; default: the configuration's llm.warm_start.",
)


@click.command("generate")
@click.option("-n", "--count", default=4, show_default=True, type=click.IntRange(1))
@_ADAPTER
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), help="Write the code here."
)
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
    from archloop.chat import extract_code
    from archloop.cli.screen import open_screen
    from archloop.config import load_config
    from archloop.context import derive_seed, task_prompt
    from archloop.generation.job import GenerationJob, generate
    from archloop.llm import resolve_adapter, resolve_model
    from archloop.progress import Progress

    config = load_config(source, overrides)
    name = adapter or config.llm.warm_start
    size = config.generation.batch_size
    seeds = [(i, derive_seed(config.seed, "generate", 1, i)) for i in range(count)]
    job = GenerationJob(
        config=config.generation,
        model_dir=resolve_model(config.llm),
        adapter_dir=resolve_adapter(name) if name else None,
        dtype=config.llm.dtype,
        messages=task_prompt(config),
        batches=[seeds[i : i + size] for i in range(0, count, size)],
    )
    if out:
        out.mkdir(parents=True, exist_ok=True)
    with open_screen() as screen:
        screen.update(
            Progress("generate", total=count, unit="completions", detail="loading the LLM")
        )
        for done, completion in enumerate(generate(job), 1):
            screen.update(Progress("generate", done=done, total=count, unit="completions"))
            code = extract_code(completion.text)
            file = out / f"{completion.index:04d}.py" if out and code is not None else None
            if file and code is not None:
                file.write_text(code + "\n", "utf-8")
            if as_json:
                row = {"index": completion.index, "seed": completion.seed, "code": code}
                row |= {"text": completion.text, "n_tokens": completion.n_tokens}
                row |= {
                    "finish_reason": completion.finish_reason,
                    "file": str(file) if file else None,
                }
                echo_json(row)
            elif file:
                click.echo(str(file))
            else:
                click.echo(f"# completion {completion.index}\n{code or completion.text}\n")


@click.command("finetune")
@click.option("--corpus", required=True, type=click.Path(path_type=Path), metavar="CORPUS.jsonl")
@click.option("--out", required=True, type=click.Path(path_type=Path), metavar="DIR")
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
    base LLM. An interrupted fine-tune goes on when the same command is given again.
    """
    from archloop.cli.screen import open_screen
    from archloop.config import load_config
    from archloop.errors import UsageError
    from archloop.finetuning import FinetuneJob, FinetuneProgress, finetune
    from archloop.llm import resolve_adapter, resolve_model
    from archloop.progress import Progress

    config = load_config(source, overrides)
    if out.exists():
        raise UsageError(f"{out}: exists already; name a new folder")
    goes_on = adapter is not None or config.finetune.init == "previous"
    parent = (adapter or config.llm.warm_start) if goes_on else None
    out.parent.mkdir(parents=True, exist_ok=True)
    job = FinetuneJob(
        model_dir=resolve_model(config.llm),
        corpus=corpus,
        output=out,
        config=config.finetune,
        dtype=config.llm.dtype,
        seed=config.seed,
        parent=resolve_adapter(parent) if parent else None,
    )
    with open_screen() as screen:
        screen.update(Progress("fine-tune", detail="loading the LLM"))

        def show(p: FinetuneProgress) -> None:
            screen.update(
                Progress(
                    "fine-tune",
                    done=p.step,
                    total=p.total_steps,
                    unit="steps",
                    tokens_per_second=p.tokens_per_second,
                    detail=p.detail,
                )
            )

        result = finetune(job, show)
    if as_json:
        echo_json(result.to_json())
    else:
        click.echo(
            f"{result.adapter}: {result.n_pairs} pairs ({result.n_too_long} too long), "
            f"{result.steps} steps, loss {result.loss:.4f}, {result.seconds:.0f} s"
        )
