"""Fine-tuning beside TRL's SFTTrainer as a plain user sets it up: tokens a second, memory, loss.

Both train the same LoRA on the same pairs of the packaged corpus with the same batch size, rate and
number of steps, each in a process of its own, in turn. Tokens are those of the pairs, without padding.
A busy machine is seen in seconds, so the same is told of each process's CPU time.
``python -m benchmarks.finetuning --pairs 16 --repetitions 2`` takes less time.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any

from benchmarks.table import Row

PAIRS, REPETITIONS, BATCH, LENGTH = 24, 3, 4, 1280
GOAL = 1.5
SETUPS = ("archloop", "archloop packed", "TRL", "TRL, activations kept")


def all_rows(
    pairs: int = PAIRS,
    repetitions: int = REPETITIONS,
    precisions: tuple[str, ...] = ("bf16",),
    batch: int = BATCH,
) -> Iterator[Row]:
    """Every set-up as often as asked for, in turn; one row for each way of measuring."""
    for precision in precisions:
        found: dict[str, list[dict[str, float]]] = {setup: [] for setup in SETUPS}
        for seed in range(repetitions):
            for setup in SETUPS:
                found[setup].append(_measure(setup, precision, pairs, batch, seed))
                print(f"{precision} {setup}: {found[setup][-1]}", file=sys.stderr, flush=True)
        yield from _rows(found, precision)


def _rows(found: dict[str, list[dict[str, float]]], precision: str) -> Iterator[Row]:
    best = max(SETUPS[:2], key=lambda setup: _median(found[setup], "rate"))
    ours = found[best]
    for setup in SETUPS[2:]:
        other = found[setup]
        for key, what in (
            ("rate", "tokens/s in steps"),
            ("cpu_rate", "tokens a CPU second in steps"),
            ("whole_rate", "tokens/s with start-up"),
        ):
            yield Row(
                f"fine-tune, {precision}: {what} ({best}; beside {setup})",
                _spread(ours, key),
                _spread(other, key),
                _median(ours, key) / _median(other, key),
                GOAL,
            )
        for key, what in (("memory", "peak memory, GiB"), ("loss", "loss of the last quarter")):
            name = f"fine-tune, {precision}: {what} ({best}; beside {setup})"
            yield Row(name, _spread(ours, key, 3), _spread(other, key, 3))
    plain, packed = (found[setup] for setup in SETUPS[:2])
    yield Row(
        f"fine-tune, {precision}: packed beside length-sorted, tokens a CPU second",
        _spread(packed, "cpu_rate"),
        _spread(plain, "cpu_rate"),
        _median(packed, "cpu_rate") / _median(plain, "cpu_rate"),
    )


def _median(rows: list[dict[str, float]], key: str) -> float:
    return statistics.median(row[key] for row in rows)


def _spread(rows: list[dict[str, float]], key: str, digits: int = 0) -> str:
    values = [row[key] for row in rows]
    low, high = min(values), max(values)
    return (
        f"{_median(rows, key):.{digits}f} [{low:.{digits}f}, {high:.{digits}f}] (n {len(values)})"
    )


def _measure(setup: str, precision: str, pairs: int, batch: int, seed: int) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.finetuning", "--child", setup]
    options = ["--precision", precision, "--pairs", str(pairs), "--batch", str(batch)]
    options += ["--seed", str(seed)]
    started = time.perf_counter()
    done = subprocess.run(
        [*command, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        check=True,
        text=True,
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    tokens = found.pop("all_tokens")
    return found | {"whole_rate": tokens / (time.perf_counter() - started)}


def _corpus(pairs: int, seed: int) -> list[list[dict[str, str]]]:
    source = resources.files("archloop.llm") / "adapters" / "smollm2-135m-lemur" / "corpus.jsonl.gz"
    with source.open("rb") as raw, gzip.open(raw, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line)["messages"] for line in lines]
    return random.Random(seed).sample(rows, pairs)


class _Clock:
    """Wall and CPU time, tokens and losses of the steps after the first, which warms up."""

    def __init__(self) -> None:
        self.marks: list[tuple[float, float]] = []
        self.tokens: list[int] = []
        self.losses: list[float] = []

    def step(self, loss: float, tokens: int) -> None:
        self.marks.append((time.perf_counter(), time.process_time()))
        self.losses.append(loss)
        self.tokens.append(tokens)

    def result(self) -> dict[str, float]:
        wall, cpu = (self.marks[-1][i] - self.marks[0][i] for i in (0, 1))
        tokens = sum(self.tokens[1:])
        last = self.losses[-max(1, len(self.losses) // 4) :]
        return {
            "rate": tokens / wall,
            "cpu_rate": tokens / cpu,
            "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
            "loss": statistics.fmean(last),
            "all_tokens": float(sum(self.tokens)),
        }


def _archloop(
    rows: list[Any], precision: str, batch: int, seed: int, *, packed: bool
) -> dict[str, float]:
    from archloop.config import load_config
    from archloop.llm.finetuning import lora
    from archloop.llm.finetuning.job import FinetuneJob
    from archloop.llm.finetuning.trainer import PairTrainer

    clock, counted = _Clock(), [0]
    compute: Callable[..., Any] = PairTrainer.compute_loss

    def counting(self: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        counted[0] += inputs["n_tokens"]
        return compute(self, model, inputs, *args, **kwargs)

    PairTrainer.compute_loss = counting  # type: ignore[method-assign]

    def emit(event: str, data: dict[str, Any]) -> None:
        if event == "step":
            clock.step(data["loss"], counted[0])
            counted[0] = 0

    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "corpus.jsonl"
        corpus.write_text("\n".join(json.dumps({"messages": m}) for m in rows) + "\n")
        changes = {"packing": packed, "epochs": 1.0, "batch_size": batch}
        config = load_config("embedded").finetune.model_copy(update=changes)
        job = FinetuneJob(
            _model_dir(), corpus, Path(folder) / "adapter", config, _dtype(precision), seed
        )
        lora.run(job.to_json(), emit)
    return clock.result()


def _trl(
    rows: list[Any], precision: str, batch: int, seed: int, *, recompute: bool
) -> dict[str, float]:
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    from archloop.config import load_config

    config, clock = load_config("embedded").finetune, _Clock()
    lengths: list[int] = []
    pairs = [{"prompt": m[:-1], "completion": m[-1:]} for m in rows]

    class Count(TrainerCallback):  # type: ignore[misc]
        def on_log(
            self, _args: Any, _state: Any, _control: Any, logs: Any = None, **_: Any
        ) -> None:
            if logs and "loss" in logs:
                clock.step(logs["loss"], sum(lengths))
                lengths.clear()

    model = AutoModelForCausalLM.from_pretrained(
        _model_dir(), dtype=getattr(torch, _dtype(precision))
    )
    with tempfile.TemporaryDirectory() as folder:
        arguments = SFTConfig(
            output_dir=folder, per_device_train_batch_size=batch, num_train_epochs=1, max_length=LENGTH,
            learning_rate=config.lr, lr_scheduler_type=config.scheduler, warmup_steps=config.warmup_steps,
            weight_decay=config.weight_decay, bf16=precision == "bf16", seed=seed, use_cpu=True,
            gradient_checkpointing=recompute, logging_steps=1, report_to=[], disable_tqdm=True,
            save_strategy="no",
        )  # fmt: skip
        lora = LoraConfig(
            r=config.lora_r, lora_alpha=config.lora_alpha, lora_dropout=config.lora_dropout,
            target_modules=list(config.target_modules), task_type="CAUSAL_LM",
        )  # fmt: skip
        trainer = SFTTrainer(
            model=model, args=arguments, train_dataset=Dataset.from_list(pairs), peft_config=lora,
            processing_class=AutoTokenizer.from_pretrained(_model_dir()), callbacks=[Count()],
        )  # fmt: skip
        compute = trainer.compute_loss

        def counting(model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            lengths.append(int(inputs["attention_mask"].sum()))
            return compute(model, inputs, *args, **kwargs)

        trainer.compute_loss = counting
        trainer.train()
    return clock.result()


def _dtype(precision: str) -> str:
    return "bfloat16" if precision == "bf16" else "float32"


def _model_dir() -> Path:
    from archloop.config import LLMConfig
    from archloop.llm.models import resolve_model

    return resolve_model(LLMConfig())


def _child(setup: str, precision: str, pairs: int, batch: int, seed: int) -> dict[str, float]:
    rows = _corpus(pairs, seed)
    if setup.startswith("archloop"):
        return _archloop(rows, precision, batch, seed, packed=setup.endswith("packed"))
    return _trl(rows, precision, batch, seed, recompute=setup == "TRL")


def main() -> None:
    """Measure as the command line says; as a child process, one set-up."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=PAIRS)
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--repetitions", type=int, default=REPETITIONS)
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--child", choices=SETUPS)
    given = parser.parse_args()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if given.child:
        print(
            json.dumps(_child(given.child, given.precision, given.pairs, given.batch, given.seed))
        )
        return
    for row in all_rows(given.pairs, given.repetitions, (given.precision,), given.batch):
        print(row.markdown(), flush=True)


if __name__ == "__main__":
    main()
