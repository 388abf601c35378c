from __future__ import annotations

import ast
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from archloop.config import NoveltyConfig, SeedsConfig
from archloop.errors import UsageError
from archloop.prompts import PromptTemplate
from archloop.seeds import SeedNetwork, build_corpus, open_source
from archloop.seeds.build import NARROW_SHARE
from archloop.seeds.clean import clean_source
from archloop.seeds.narrow import FACTORS, narrow
from archloop.types import Outcome, Verdict

RAW = '''
"""A module docstring."""
from torch import nn
import os, torch
import unused_thing
addon_accuracy: 0.61
class Net(nn.Module):
    """Docs."""
    def learn(self, train_data):  # comment
        pass
    def train_setup(self, prm): pass
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)
    def __init__(self, in_shape: tuple, out_shape: tuple, prm: dict, device):
        super().__init__()
        self.layer = nn.Sequential(nn.Conv2d(3, 256, kernel_size=17), nn.Linear(4096, 2048))

def supported_hyperparameters():
    return {'lr', 'momentum'}

if __name__ == "__main__":
    print(os)
'''


def test_cleaning_leaves_what_is_worth_teaching() -> None:
    code = clean_source(RAW)
    assert code.startswith("import torch.nn as nn\n")
    for gone in (
        "addon_accuracy",
        "docstring",
        "Docs",
        "comment",
        "unused_thing",
        "os",
        "__main__",
    ):
        assert gone not in code
    assert "x: torch.Tensor" not in code
    tree = ast.parse(code)
    assert [n.name for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef)] == [
        "supported_hyperparameters",
        "Net",
    ]
    net = next(n for n in tree.body if isinstance(n, ast.ClassDef))
    order = [n.name for n in net.body if isinstance(n, ast.FunctionDef)]
    assert order == ["__init__", "forward", "train_setup", "learn"]


def test_cleaning_twice_changes_nothing() -> None:
    assert clean_source(clean_source(RAW)) == clean_source(RAW)


def test_the_width_edit_scales_widths_and_leaves_kernels() -> None:
    code = narrow(clean_source(RAW), 0.25, 0.0625)
    assert "nn.Conv2d(3, 64, kernel_size=17)" in code
    assert "nn.Linear(256, 128)" in code


def test_factors_never_grow() -> None:
    for wide, slim in zip(FACTORS, FACTORS[1:], strict=False):
        assert slim[0] <= wide[0]
        assert slim[1] <= wide[1]


def network(width: int, name: str = "") -> str:
    # Distinct statements keep the networks from being near-duplicates of each other.
    body = "\n".join(f"        self.{name}{i} = nn.Linear({width}, {i})" for i in range(12))
    return RAW.replace("        self.layer = ", f"{body}\n        self.layer = ")


class Listed:
    """A source made of a list."""

    digest = "0"

    def __init__(self, networks: list[SeedNetwork]) -> None:
        self._networks = networks

    def networks(self) -> Iterator[SeedNetwork]:
        yield from self._networks


def widths(code: str) -> int:
    """A stand-in for the sandbox: the sum of all integers is the parameter count."""
    found = [
        n.value
        for n in ast.walk(ast.parse(code))
        if isinstance(n, ast.Constant) and type(n.value) is int
    ]
    return sum(found)


def probe(codes: Sequence[str]) -> list[Verdict]:
    return [
        Verdict(Outcome.FORWARD_ERROR, "broken")
        if "broken" in code
        else Verdict(Outcome.VALID, None, widths(code))
        for code in codes
    ]


def build(networks: list[SeedNetwork], **seeds: object):  # type: ignore[no-untyped-def]
    return build_corpus(
        Listed(networks),
        seeds=SeedsConfig(**seeds),  # type: ignore[arg-type]
        novelty=NoveltyConfig(),
        template=PromptTemplate(),
        max_params=10_000,
        probe=probe,
        count_tokens=lambda codes: [len(code) for code in codes],
    )


def test_every_dropped_network_is_explained() -> None:
    networks = [
        SeedNetwork("good", "a", network(20, "good"), 0.3),
        SeedNetwork("twin", "a", network(20, "good"), 0.2),
        SeedNetwork("near", "a", network(20, "good") + "\ny = 1\n", 0.1),
        SeedNetwork("large", "a", network(5_000, "large"), None),
        SeedNetwork("broken", "a", network(21, "broken"), None),
        SeedNetwork("torn", "a", "class Net(", None),
        SeedNetwork("forbidden", "a", "import socket\n" + network(22, "f") + "\nx = socket", None),
    ]
    pairs, report = build(networks)
    assert {p.meta["source"] for p in pairs} == {"good"}
    assert len(pairs) == 2
    assert sum(report.dropped.values()) == len(networks) - 1
    assert {"exact duplicate", "near-duplicate", "forward_error", "does not parse"} <= set(
        report.dropped
    )
    assert report.to_json()["steps"][0] == {"step": "read", "networks": 7}
    assert "near-duplicate" in report.to_markdown()


def test_a_narrowed_network_is_marked_and_counted_apart() -> None:
    large = SeedNetwork("large", "a", network(5_000, "large"), None)
    pairs, report = build([large], narrow=5, variant="one_prompt")
    assert len(pairs) == 1
    meta = pairs[0].meta
    assert meta["narrowed"] in [list(f) for f in FACTORS]
    assert 0 < meta["n_params"] <= NARROW_SHARE * 10_000
    assert report.families == {"a (narrowed)": 1}
    wider = FACTORS[[list(f) for f in FACTORS].index(meta["narrowed"]) - 1]
    assert widths(narrow(clean_source(large.code), *wider)) > NARROW_SHARE * 10_000


def test_the_prompt_names_the_measured_count() -> None:
    pairs, _ = build([SeedNetwork("good", "a", network(20, "good"), 0.3)])
    n_params = pairs[0].meta["n_params"]
    assert {p.meta["dataset"] for p in pairs} == {"CIFAR-10", "MNIST"}
    cap = int(pairs[0].messages[1]["content"].split("At most ")[1].split()[0].replace(",", ""))
    assert n_params <= cap < 5 * n_params


def test_the_same_input_gives_the_same_corpus_in_any_order() -> None:
    networks = [SeedNetwork(f"n{i}", "a", network(20 + i, f"n{i}"), None) for i in range(4)]
    assert build(networks)[0] == build(networks[::-1])[0]


def test_nothing_left_is_said_with_reasons() -> None:
    with pytest.raises(UsageError, match="does not parse"):
        build([SeedNetwork("torn", "a", "class Net(", None)])


def test_folders_and_chat_files_are_sources(tmp_path: Path) -> None:
    (tmp_path / "family").mkdir()
    (tmp_path / "family" / "one.py").write_text(RAW)
    config = SeedsConfig(source="directory", path=str(tmp_path))
    networks = list(open_source(config).networks())
    assert [(n.name, n.family) for n in networks] == [("family/one", "family")]
    pairs, _ = build(networks)
    chat = tmp_path / "chat.jsonl"
    chat.write_text("".join(json.dumps(p.to_json()) + "\n" for p in pairs))
    again = list(open_source(SeedsConfig(source="jsonl", path=str(chat))).networks())
    assert {n.code for n in again} == {clean_source(RAW)}


@pytest.mark.parametrize("source", ["directory", "jsonl"])
def test_a_missing_source_is_named(tmp_path: Path, source: str) -> None:
    with pytest.raises(UsageError, match="missing"):
        open_source(SeedsConfig(source=source, path=str(tmp_path / "missing")))
