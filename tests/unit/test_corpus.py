from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from archloop.config import load_config
from archloop.corpus.pairs import distinct_codes, make_pair, read_pairs, write_pairs
from archloop.corpus.seed_corpus import seed_pairs
from archloop.corpus.seeds.files import JsonlSource
from archloop.errors import UsageError
from archloop.progress import Silent
from archloop.search.prompts import CIFAR10, PromptTemplate

PAIR = make_pair(PromptTemplate().render(CIFAR10, 500_000), "x = 'é'", {"source": "seed"})
ROW = json.dumps(PAIR.to_json(), ensure_ascii=False).encode() + b"\n"
ZIPPED = gzip.compress(ROW * 2)


def test_a_corpus_comes_back_as_it_was_written(tmp_path: Path) -> None:
    write_pairs(tmp_path / "corpus.jsonl", [PAIR])
    (tmp_path / "corpus.jsonl.gz").write_bytes(ZIPPED)
    assert read_pairs(tmp_path / "corpus.jsonl") == [PAIR]
    assert read_pairs(tmp_path / "corpus.jsonl.gz") == [PAIR, PAIR]


def test_networks_of_one_id_are_all_known() -> None:
    prompt = PromptTemplate().render(CIFAR10, 500_000)
    pairs = [make_pair(prompt, f"x = {n}", {"candidate": "c01-0001"}) for n in (1, 2, 2)]
    assert dict(distinct_codes(pairs)) == {"c01-0001": "x = 1", "c01-0001#2": "x = 2"}


def test_what_another_run_generated_is_a_seed_here(tmp_path: Path) -> None:
    prompt = PromptTemplate().render(CIFAR10, 500_000)
    meta = {"generated": True, "cycle": 1, "candidate": "c01-0001"}
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    save_file({"lora": np.zeros(1)}, tmp_path / "adapter_model.safetensors")
    write_pairs(tmp_path / "corpus.jsonl", [make_pair(prompt, "x = 1", meta)])
    packed = gzip.compress((tmp_path / "corpus.jsonl").read_bytes())
    (tmp_path / "corpus.jsonl.gz").write_bytes(packed)
    config = load_config("embedded", [f"seeds.path={tmp_path}"])
    (found,) = seed_pairs(config, Silent(), lambda _: [])
    assert found.meta == {"candidate": "c01-0001"}


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (ROW + b"{\n", 2),
        (ROW + b"5\n", 2),
        (ROW + ROW.replace(b'{"source": "seed"}', b"5"), 2),
        (ROW + b"[" * 100_000 + b"\n", 2),
    ],
    ids=["torn", "no object", "meta is no object", "nested too deeply"],
)
def test_what_is_no_corpus_is_refused_by_line(tmp_path: Path, content: bytes, line: int) -> None:
    file = tmp_path / "corpus.jsonl"
    file.write_bytes(content)
    with pytest.raises(UsageError, match=rf"corpus\.jsonl:{line}: not a chat row"):
        read_pairs(file)
    with pytest.raises(UsageError, match=rf"corpus\.jsonl:{line}: not a chat row"):
        list(JsonlSource(file).networks())


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("corpus.jsonl", ROW.decode().encode("latin-1")),
        ("corpus.jsonl.gz", ROW),
        ("corpus.jsonl.gz", ZIPPED[:-12]),
        ("corpus.jsonl.gz", ZIPPED[:20] + b"\xff" * 40 + ZIPPED[60:]),
    ],
    ids=["not UTF-8", "no gzip", "truncated", "damaged"],
)
def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(UsageError, match=r"corpus\.jsonl.*: not a readable corpus file"):
        read_pairs(file)
