"""Measure an adapter and write its card: `python tools/adapter_card.py ADAPTER_DIR [N]`.

Asks the LLM with this adapter for N networks as the first cycle of a run with the preset would
(prompt, decoding, and structure classes drawn evenly where the preset asks for any), and gives each
to the sandbox: valid means built within the parameter budget and trained to the end of an epoch (of
500 CIFAR-10 images, as only the verdict counts here). Writes `measured.json` and `README.md` into
the adapter's folder. `adapter_history/NAME.md` says how the adapter of that name was made.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from archloop.cli.screen import open_screen
from archloop.code.chat import code_sha256, extract_code
from archloop.config import RunConfig, load_config
from archloop.corpus.pairs import read_pairs, seeds_to_judge
from archloop.evaluation.alone import Evaluation, Source, evaluate_many
from archloop.evaluation.graphs import graphs_of
from archloop.llm.generation.session import GeneratorSession
from archloop.llm.models import resolve_model
from archloop.loop.context import task_subject
from archloop.machine.session import machine, versions
from archloop.novelty import NoveltyIndex
from archloop.novelty.structure import PLAIN, structure_class
from archloop.report.structures import effective_number
from archloop.search.history import History, Known
from archloop.search.strategy import build_strategy
from archloop.search.targets import has_structure
from archloop.stats import wilson_interval
from archloop.types import Candidate, Completion, CycleStats, Request

SMALL = ["protocol.train_images=500", "protocol.validation_images=500"]


class NoRecord:
    """A run that has not begun."""

    def cycles(self) -> list[CycleStats]:
        return []

    def candidates(self, cycle: int | None = None) -> list[Candidate]:  # noqa: ARG002
        return []


def asked(config: RunConfig, known: dict[str, str], count: int) -> list[Request]:
    """The requests of a run's first cycle."""
    subject = task_subject(config)
    with open_screen() as screen:
        graphs = graphs_of(
            list(known.values()), shape=subject.shape, classes=subject.classes, observer=screen
        )
    networks = [
        Known(id, code, graph) for (id, code), graph in zip(known.items(), graphs, strict=True)
    ]
    history = History(
        record=NoRecord(),
        seed=config.seed,
        task=config.task.name,
        subject=subject,
        max_params=config.task.max_params,
        seed_networks=lambda: networks,
        corpus=lambda _: [],
    )
    return build_strategy(config).ask(history, 1, count)


def sample(config: RunConfig, adapter: Path, requests: list[Request]) -> list[Completion]:
    size = config.generation.batch_size
    batches = [requests[i : i + size] for i in range(0, len(requests), size)]
    with GeneratorSession(config, resolve_model(config.llm)) as session:
        sampled = list(session.generate(batches, adapter))
    found = [one.completion for one in sampled if one.completion]
    return sorted(found, key=lambda c: c.index)


def measure(adapter: Path, corpus: Path, preset: str, count: int) -> dict[str, object]:
    config = load_config(preset, [*SMALL, f"llm.warm_start={adapter}"])
    known = seeds_to_judge(read_pairs(corpus))
    requests = asked(config, known, count)
    completions = sample(config, adapter, requests)
    codes = {f"{c.index:04d}": extract_code(c.text) for c in completions}
    sources = [Source(id_, code) for id_, code in codes.items() if code is not None]
    rows = list(evaluate_many(sources, config))
    valid = [row for row in rows if row.outcome.is_valid]
    index = NoveltyIndex(config.novelty)
    for id_, code in known.items():
        index.add(id_, code)
    copies = sum(index.is_near_duplicate(index.query(row.code or "")[0]) for row in valid)
    outcomes = Counter(row.outcome.value for row in rows)
    outcomes["no_code"] = count - len(sources)
    low, high = wilson_interval(len(valid), count)
    budgets = sorted(row.n_params or 0 for row in valid)
    return {
        "preset": preset,
        "completions": count,
        "valid": len(valid),
        "valid_rate": len(valid) / count,
        "wilson_95": [low, high],
        "distinct_valid": len({code_sha256(row.code or "") for row in valid}),
        "distinct_graphs": len({row.graph.hash for row in valid if row.graph}),
        "valid_near_duplicates_of_a_seed": copies,
        "median_params_of_valid": budgets[len(budgets) // 2] if budgets else None,
        "structure": structure(valid, {f"{r.index:04d}": r.origin.structure for r in requests}),
        "tokens": sum(c.n_tokens for c in completions),
        "outcomes": dict(outcomes.most_common()),
        "errors": dict(Counter(r.error for r in rows if r.error).most_common(5)),
        "decoding": config.generation.model_dump(mode="json"),
        "max_params": config.task.max_params,
        "machine": machine(),
        "versions": versions(),
    }


def structure(valid: Iterable[Evaluation], wanted: dict[str, str | None]) -> dict[str, object]:
    """Classes of the valid networks, and whether they are what was asked for."""
    classes = {row.id: found for row in valid if (found := structure_class(row.measures))}
    counts = Counter(classes.values())
    pairs = [(row, wanted[row.id]) for row in valid if row.id in classes and wanted[row.id]]
    return {
        "known": len(classes),
        "structured": len(classes) - counts[PLAIN],
        "classes": dict(counts.most_common()),
        "effective_classes": effective_number(counts),
        "asked": len(pairs),
        "asked_exact": sum(classes[row.id] == asked for row, asked in pairs),
        "asked_at_least": sum(bool(has_structure(row, asked or "")) for row, asked in pairs),
    }


def structure_rows(m: dict[str, object]) -> str:
    found = m["structure"]
    assert isinstance(found, dict)
    frequent = ", ".join(f"{name} {n}" for name, n in list(found["classes"].items())[:8])
    rows = [
        f"| distinct graphs among the valid | {m['distinct_graphs']} of {m['valid']} |",
        f"| structured among the valid | {found['structured']} of {found['known']} |",
        f"| structure classes | {len(found['classes'])}, effective {found['effective_classes']:.1f} |",
        f"| most frequent | {frequent} |",
    ]
    if n := found["asked"]:
        rows.append(f"| of exactly the class asked for | {found['asked_exact']} of {n} |")
        rows.append(f"| with every structure asked for | {found['asked_at_least']} of {n} |")
    return "\n".join(rows)


HISTORY = Path(__file__).parent / "adapter_history"
LICENCES = {
    "embedded": """Adapter: Apache-2.0. `corpus.jsonl.gz` is made from the LEMUR Neural Network Dataset (ABrain-One/nn-dataset
2.1.0, MIT licence, copyright its authors); the MIT licence text applies to those sources.""",
    "structures": """Adapter: Apache-2.0. `corpus.jsonl.gz` is archloop's own, under its licence.""",
}


def card(adapter: Path, m: dict[str, object]) -> str:
    lineage = json.loads((adapter / "lineage.json").read_text())
    low, high = m["wilson_95"]  # type: ignore[misc]
    decoding = m["decoding"]
    assert isinstance(decoding, dict)
    history = (HISTORY / f"{adapter.name}.md").read_text().strip()
    return f"""# {adapter.name}

A LoRA adapter (r {lineage["finetune"]["lora_r"]}, alpha {lineage["finetune"]["lora_alpha"]}, bfloat16) for
SmolLM2-135M-Instruct (Apache-2.0) that writes PyTorch networks under archloop's candidate contract.

{history}

Final loss {lineage["loss"]} nats a token (mean of the last tenth of the steps); corpus SHA-256
`{lineage["corpus_sha256"]}`.

## Measured

Asked for at most {m["max_params"]:,} parameters on CIFAR-10 with the prompt and decoding that the `{m["preset"]}` preset had then
(temperature {decoding["temperature"]}, top-k {decoding["top_k"]}, top-p {decoding["top_p"]}, engine
{decoding["engine"]}); the sandbox's verdict, over budget counts as invalid. One run of
`python tools/adapter_card.py ADAPTER_DIR {m["completions"]} --preset {m["preset"]}`, n = {m["completions"]} completions, on {m["machine"]["processor"]}
({m["machine"]["cores"]} cores), torch {m["versions"]["torch"]}:

| what | figure |
|---|---|
| valid | {m["valid"]} of {m["completions"]} = {m["valid_rate"]:.1%}, Wilson 95 % [{low:.1%}, {high:.1%}] |
| distinct among the valid | {m["distinct_valid"]} of {m["valid"]} |
| valid that copy a seed (Jaccard > 0.90) | {m["valid_near_duplicates_of_a_seed"]} |
| median parameters of the valid | {m["median_params_of_valid"]:,} |
{structure_rows(m)}
| outcomes | {", ".join(f"{k} {n}" for k, n in m["outcomes"].items() if n)} |

## Licence

{LICENCES[m["preset"]]}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[1])
    parser.add_argument("adapter", type=Path, metavar="ADAPTER_DIR")
    parser.add_argument("count", type=int, nargs="?", default=128, metavar="N")
    parser.add_argument("--preset", default="embedded", choices=sorted(LICENCES))
    parser.add_argument("--corpus", type=Path, help="default: corpus.jsonl.gz of the adapter")
    given = parser.parse_args()
    adapter: Path = given.adapter
    corpus = given.corpus or adapter / "corpus.jsonl.gz"
    measured = measure(adapter, corpus, given.preset, given.count)
    (adapter / "measured.json").write_text(json.dumps(measured, indent=2) + "\n")
    if (HISTORY / f"{adapter.name}.md").is_file():
        (adapter / "README.md").write_text(card(adapter, measured))


if __name__ == "__main__":
    main()
