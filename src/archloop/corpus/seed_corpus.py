"""The seed corpus of a run, and accepted networks as chat pairs.

The seed corpus is built once for a configuration and kept in the cache.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from archloop.code.chat import extract_code
from archloop.code.hygiene import as_trained, suspect_text, without_messages
from archloop.config import RunConfig, config_digest
from archloop.corpus.pairs import make_pair, read_pairs, write_pairs
from archloop.corpus.seeds import build_corpus, open_source
from archloop.corpus.seeds.build import Probe
from archloop.corpus.seeds.children import Trace
from archloop.corpus.seeds.lemur import LemurSource
from archloop.errors import ConfigError, UsageError
from archloop.files import write_text
from archloop.llm.models import resolve_adapter, resolve_model
from archloop.machine.downloads import cache_dir, lock
from archloop.machine.hardware import usable_cores
from archloop.progress import Observer, Progress
from archloop.search.prompts import PromptTemplate
from archloop.types import Candidate, ChatPair, Message

_BUILD_VERSION = 5
"""Increased when the same configuration gives another seed corpus than before."""


@dataclass(frozen=True)
class SeedCorpus:
    """The files of a built seed corpus: the pairs, and the report of every step."""

    folder: Path

    @property
    def pairs_file(self) -> Path:
        """The pairs as JSONL."""
        return self.folder / "seeds.jsonl"

    @property
    def report_json(self) -> Path:
        """The report for programs."""
        return self.folder / "report.json"

    @property
    def report_markdown(self) -> Path:
        """The report for readers."""
        return self.folder / "report.md"


def seed_pairs(
    config: RunConfig, observer: Observer, probe: Probe, trace: Trace | None = None
) -> list[ChatPair]:
    """The configured seeds as pairs, built on first use.

    Args:
        config: Says where they come from.
        observer: Told how far it is.
        probe: As of :func:`archloop.corpus.seeds.build.build_corpus`.
        trace: The same.
    """
    if config.seeds.source == "none":
        return []
    if config.seeds.source == "packaged":
        packaged = read_pairs(packaged_corpus(config.seeds.path or ""))
        return [_as_seed(pair) for pair in _unsuspicious(packaged, config, observer)]
    pairs = read_pairs(seed_corpus(config, observer, probe, trace).pairs_file)
    return [pair for pair in pairs if pair.meta.get("split", "train") == "train"]


def _unsuspicious(
    pairs: Sequence[ChatPair], config: RunConfig, observer: Observer
) -> list[ChatPair]:
    """The pairs without text that no LLM must learn; a corpus may come from anywhere."""
    if "suspect_text" in config.selection.allow_flags:
        return list(pairs)
    kept = []
    for pair in pairs:
        code = extract_code(pair.code) or pair.code
        emptied = without_messages(code)
        if emptied != code:
            pair = make_pair(pair.messages[:2], emptied, pair.meta)
        if (found := suspect_text(emptied)) is None:
            kept.append(pair)
        else:
            observer.message(f"seeds: pair {pair.id} is left out: {found}")
    return kept


def _as_seed(pair: ChatPair) -> ChatPair:
    """A pair that another run may have generated, as a seed network of this run."""
    meta = {k: v for k, v in pair.meta.items() if k not in ("generated", "cycle")}
    return replace(pair, meta=meta)


def packaged_corpus(adapter: str) -> Path:
    """The corpus a packaged adapter was made from.

    Raises:
        ConfigError: The adapter has none.
    """
    file = resolve_adapter(adapter, "seeds.path") / "corpus.jsonl.gz"
    if not file.is_file():
        raise ConfigError(f"seeds.path: the adapter {adapter!r} comes without its corpus")
    return file


def seed_corpus(
    config: RunConfig, observer: Observer, probe: Probe, trace: Trace | None = None
) -> SeedCorpus:
    """The configured seed corpus in the cache, built on first use; as :func:`seed_pairs`."""
    source = open_source(config.seeds, config.seed)
    template = PromptTemplate.from_config(config.prompt)
    key = config_digest(
        {
            "source": source.digest,
            "seeds": config.seeds.model_dump(mode="json"),
            "novelty": config.novelty.model_dump(mode="json"),
            "prompt": template.digest,
            "max_params": config.task.max_params,
            "allow_flags": config.selection.allow_flags,
            "tokens_of": config.llm.model if config.seeds.max_tokens else None,
            "seed": config.seed if config.seeds.augment or config.seeds.edit_pairs else None,
            "version": _BUILD_VERSION,
        }
    )
    corpus = SeedCorpus(cache_dir() / "corpora" / f"{config.seeds.source}-{key}")
    with lock(corpus.folder.name):
        if corpus.report_json.is_file():
            return corpus
        observer.update(Progress("seeds", detail="reading and cleaning networks"))
        with ThreadPoolExecutor(1) as pool:
            lemur = source if isinstance(source, LemurSource) else None
            records = pool.submit(lemur.n_records) if lemur else None
            pairs, report = build_corpus(
                source,
                seeds=config.seeds,
                novelty=config.novelty,
                template=template,
                max_params=config.task.max_params,
                allow_flags=config.selection.allow_flags,
                probe=probe,
                trace=trace,
                run_seed=config.seed,
                count_tokens=lambda codes: _count_tokens(config, codes),
                processes=usable_cores(),
            )
            report.lemur_records = records.result() if records else None
        write_pairs(corpus.pairs_file, pairs)
        write_text(corpus.report_markdown, report.to_markdown())
        # Written last: its presence says that the folder is complete.
        write_text(corpus.report_json, json.dumps(report.to_json(), indent=2) + "\n")
    return corpus


def _count_tokens(config: RunConfig, codes: Sequence[str]) -> list[int]:
    from tokenizers import Tokenizer

    file = resolve_model(config.llm) / "tokenizer.json"
    if not file.is_file():
        raise UsageError(f"seeds.max_tokens: {file.parent} has no tokenizer.json")
    encoded = Tokenizer.from_file(str(file)).encode_batch(list(codes), add_special_tokens=False)
    return [len(e.ids) for e in encoded]


def accepted_pair(candidate: Candidate, prompt: Sequence[Message], **meta: object) -> ChatPair:
    """An accepted network as a pair: the prompt it was sampled with, its cleaned source.

    A source that cannot be cleaned is used as it was written, so that it does not stop the run.
    """
    assert candidate.code is not None
    details = {
        "generated": True,
        "candidate": candidate.id,
        "cycle": candidate.cycle,
        "n_params": candidate.n_params,
        "first_epoch_accuracy": candidate.first_epoch_accuracy,
        "code_sha256": candidate.code_sha256,
        **meta,
    }
    return make_pair(prompt, as_trained(candidate.code), details)
