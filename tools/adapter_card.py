"""Measure an adapter and write its card: `python tools/adapter_card.py ADAPTER_DIR [N]`.

Asks the LLM with this adapter for N networks with the prompt and decoding of the embedded preset,
and gives each to the sandbox: valid means built within the parameter budget and trained to the end
of an epoch (of 2,000 CIFAR-10 images, as only the verdict counts here). Writes `measured.json` and
`README.md` into the adapter's folder.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path

from archloop.code.chat import code_sha256, extract_code
from archloop.config import RunConfig, load_config
from archloop.config.derived import derive_seed
from archloop.corpus.pairs import distinct_codes, read_pairs
from archloop.evaluation.alone import Source, evaluate_many
from archloop.llm.generation.session import GeneratorSession
from archloop.llm.models import resolve_model
from archloop.loop.context import task_subject
from archloop.machine.session import machine, versions
from archloop.novelty import NoveltyIndex
from archloop.search.prompts import PromptTemplate
from archloop.stats import wilson_interval
from archloop.types import Completion, Request


def sample(config: RunConfig, adapter: Path, count: int) -> list[Completion]:
    size = config.generation.batch_size
    template = PromptTemplate.from_config(config.prompt)
    messages = tuple(template.render(task_subject(config), config.task.max_params))
    temperature = config.generation.temperature
    requests = [
        Request(
            cycle=1,
            index=index,
            seed=derive_seed(config.seed, "adapter-card", index),
            task=config.task.name,
            messages=messages,
            temperature=temperature,
        )
        for index in range(count)
    ]
    batches = [requests[i : i + size] for i in range(0, count, size)]
    with GeneratorSession(config, resolve_model(config.llm)) as session:
        sampled = list(session.generate(batches, adapter))
    found = [one.completion for one in sampled if one.completion]
    return sorted(found, key=lambda c: c.index)


def measure(adapter: Path, count: int) -> dict[str, object]:
    config = load_config(
        "embedded", ["protocol.train_images=2000", "protocol.validation_images=500"]
    )
    completions = sample(config, adapter, count)
    codes = {f"{c.index:04d}": extract_code(c.text) for c in completions}
    sources = [Source(id_, code) for id_, code in codes.items() if code is not None]
    rows = list(evaluate_many(sources, config))
    valid = [row for row in rows if row.outcome.is_valid]
    index = NoveltyIndex(config.novelty)
    for id_, code in distinct_codes(read_pairs(adapter / "corpus.jsonl.gz")):
        index.add(id_, code)
    copies = sum(index.is_near_duplicate(index.query(row.code or "")[0]) for row in valid)
    outcomes = Counter(row.outcome.value for row in rows)
    outcomes["no_code"] = count - len(sources)
    low, high = wilson_interval(len(valid), count)
    budgets = sorted(row.n_params or 0 for row in valid)
    return {
        "completions": count,
        "valid": len(valid),
        "valid_rate": len(valid) / count,
        "wilson_95": [low, high],
        "distinct_valid": len({code_sha256(row.code or "") for row in valid}),
        "valid_near_duplicates_of_a_seed": copies,
        "median_params_of_valid": budgets[len(budgets) // 2] if budgets else None,
        "tokens": sum(c.n_tokens for c in completions),
        "outcomes": dict(outcomes.most_common()),
        "errors": dict(Counter(r.error for r in rows if r.error).most_common(5)),
        "decoding": config.generation.model_dump(mode="json"),
        "max_params": config.task.max_params,
        "machine": machine(),
        "versions": versions(),
    }


def card(adapter: Path, m: dict[str, object]) -> str:
    lineage = json.loads((adapter / "lineage.json").read_text())
    low, high = m["wilson_95"]  # type: ignore[misc]
    decoding = m["decoding"]
    assert isinstance(decoding, dict)
    history = (Path(__file__).parent / "adapter_history.md").read_text().strip()
    return f"""# smollm2-135m-lemur

A LoRA adapter (r {lineage["finetune"]["lora_r"]}, alpha {lineage["finetune"]["lora_alpha"]}, bfloat16) for
SmolLM2-135M-Instruct (Apache-2.0) that writes PyTorch networks under archloop's candidate contract.

{history}

Final loss {lineage["loss"]} nats a token (mean of the last tenth of the steps); corpus SHA-256
`{lineage["corpus_sha256"]}`.

## Measured

Asked for at most {m["max_params"]:,} parameters on CIFAR-10 with the decoding that the `embedded` preset had then
(temperature {decoding["temperature"]}, top-k {decoding["top_k"]}, top-p {decoding["top_p"]}, engine
{decoding["engine"]}); the sandbox's verdict, over budget counts as invalid. One run of
`python tools/adapter_card.py ADAPTER_DIR {m["completions"]}`, n = {m["completions"]} completions, on {m["machine"]["processor"]}
({m["machine"]["cores"]} cores), torch {m["versions"]["torch"]}:

| what | figure |
|---|---|
| valid | {m["valid"]} of {m["completions"]} = {m["valid_rate"]:.1%}, Wilson 95 % [{low:.1%}, {high:.1%}] |
| distinct among the valid | {m["distinct_valid"]} of {m["valid"]} |
| valid that copy a seed (Jaccard > 0.90) | {m["valid_near_duplicates_of_a_seed"]} |
| median parameters of the valid | {m["median_params_of_valid"]:,} |
| outcomes | {", ".join(f"{k} {n}" for k, n in m["outcomes"].items() if n)} |

## Licence

Adapter: Apache-2.0. `corpus.jsonl.gz` is made from the LEMUR Neural Network Dataset (ABrain-One/nn-dataset
2.1.0, MIT licence, copyright its authors); the MIT licence text applies to those sources.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[1])
    parser.add_argument("adapter", type=Path, metavar="ADAPTER_DIR")
    parser.add_argument("count", type=int, nargs="?", default=128, metavar="N")
    given = parser.parse_args()
    adapter: Path = given.adapter
    measured = measure(adapter, given.count)
    (adapter / "measured.json").write_text(json.dumps(measured, indent=2) + "\n")
    (adapter / "README.md").write_text(card(adapter, measured))


if __name__ == "__main__":
    main()
