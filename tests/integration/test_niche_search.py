"""A run that asks for structures, selects by niche and trains would-be champions again."""

from __future__ import annotations

import random
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from archloop.code.chat import render_code
from archloop.code.linking import linked
from archloop.config import RunConfig, resolve
from archloop.corpus.pairs import make_pair, read_pairs, write_pairs
from archloop.loop.run import run
from archloop.novelty.structure import niche, structure_class
from archloop.report import write_report
from archloop.search.archive import AGAIN
from archloop.search.prompts import CIFAR10, PromptTemplate
from archloop.search.selection import NICHE_THRESHOLDS
from archloop.store.run_dir import FINISHED, Run, RunDir
from archloop.store.store import Store
from made_runs import add_texts

USER = "{dataset} {shape} {classes} {max_params} Structure: {structure}."
HEAD = "from archloop.blocks import *\n\nclass Net(Design):\n\n    def layers(self, classes):\n"
SLOW = """
    def train_setup(self, prm):
        super().train_setup({**prm, "lr": 0.02 * prm["lr"]})
"""
"""The networks of the first cycle learn little, so that those of the second are better."""
LAYERS = ("Skip(conv())", "conv()", "Gate(nn.AdaptiveAvgPool2d(1), mix())")


def answer(cycle: int, index: int) -> str:
    """A network of one of three classes; those of the second cycle are a little wider."""
    rng = random.Random(f"{cycle}/{index}")
    widths = [f"conv({rng.randrange(8, 12) + cycle})" for _ in range(3)]
    layers = [*widths, "nn.MaxPool2d(2)", LAYERS[index % 3], "conv(12, 1)", "head(classes)"]
    body = f"        return [{', '.join(layers)}]\n{SLOW if cycle == 1 else ''}"
    return render_code(linked(HEAD + body))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("source")
    with Store(RunDir(root).database) as store:
        for cycle in (1, 2):
            add_texts(store, cycle, [answer(cycle, index) for index in range(6)])
    (root / "adapter").mkdir()
    (root / "adapter" / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    save_file({"lora": np.zeros(1)}, root / "adapter" / "adapter_model.safetensors")
    prompt = PromptTemplate(user=USER).render(CIFAR10, 500_000)
    seed = linked(HEAD + "        return [conv(8), Skip(conv()), head(classes)]\n")
    write_pairs(root / "seeds.jsonl", [make_pair(prompt, seed, {})])
    return root


def config(source: Path, cycles: int = 2) -> RunConfig:
    return resolve(
        {
            "llm": {"warm_start": str(source / "adapter")},
            "seeds": {"source": "jsonl", "path": str(source / "seeds.jsonl")},
            "prompt": {"user": USER},
            "generation": {"engine": "replay", "replay_from": str(source), "batch_size": 3},
            "task": {"name": "digits", "image_size": 16, "max_params": 100_000},
            "protocol": {"augmentation": "none", "lr": 0.05, "train_images": 600},
            "selection": {"min_accuracy": 0.0, "percentile": 50},
            "search": {
                "condition": "best",
                "select": "niche",
                "niche_size": 2,
                "champion_repeats": 2,
            },
            "finetune": {"enabled": False},
            "loop": {"cycles": cycles, "completions": 6},
        }
    )


def rows(root: Path) -> list[dict[str, object]]:
    with Run.open(root) as opened:
        found = [c.to_json() for c in opened.store.candidates()]
    for row in found:
        row["measures"].pop("work", None)
        row.pop("train_seconds")
    return found


@pytest.fixture(scope="module")
def whole(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("whole") / "run"
    run(config(source), root).close()
    return root


def test_prompts_ask_for_known_classes_and_pairs_say_what_is_there(whole: Path) -> None:
    with Run.open(whole) as opened:
        first, second = opened.store.requests(1), opened.store.requests(2)
        accepted = {c.id: c for c in opened.store.accepted()}
    assert {r.origin.structure for r in first} == {"skip"}, "that of the only seed network"
    assert {r.origin.structure for r in second} <= {"skip", "plain", "gate"}
    assert all(f"Structure: {r.origin.structure}." in r.messages[1]["content"] for r in first)
    pairs = [p for p in read_pairs(RunDir(whole).corpus(3)) if p.meta.get("generated")]
    assert len(pairs) == len(accepted) > 2
    for pair in pairs:
        found = structure_class(accepted[pair.meta["candidate"]].measures)
        assert f"Structure: {found}." in pair.messages[1]["content"]


def test_niches_have_thresholds_and_champions_were_trained_again(whole: Path) -> None:
    with Run.open(whole) as opened:
        stats, candidates = opened.cycles(), opened.store.candidates()
    valid = [c for c in candidates if c.outcome.is_valid]
    assert len(valid) >= 10
    for cycle in stats:
        of_cycle = {niche(c.measures) for c in valid if c.cycle == cycle.cycle}
        assert of_cycle <= set(cycle.decided[NICHE_THRESHOLDS])
    repeated = [c for c in valid if f"{AGAIN}1" in c.measures]
    assert repeated
    assert {c.cycle for c in repeated} == {2}, "the first of a niche has nobody to beat"
    champions = {}
    for c in valid:
        if c.cycle == 1 and c.outcome.value == "accepted":
            name, accuracy = niche(c.measures), c.first_epoch_accuracy or 0.0
            champions[name] = max(champions.get(name, 0.0), accuracy)
    for c in repeated:
        assert (c.first_epoch_accuracy or 0.0) > champions[niche(c.measures)]
        assert f"{AGAIN}2" in c.measures


def test_a_run_that_lost_a_repeat_finds_the_same(whole: Path, source: Path, tmp_path: Path) -> None:
    root = tmp_path / "run"
    shutil.copytree(whole, root)
    with sqlite3.connect(RunDir(root).database) as db:
        db.execute("delete from decisions where cycle = 2")
        db.execute("delete from cycles where cycle = 2")
        db.execute(f"delete from measures where name = '{AGAIN}2'")
        db.execute("delete from meta where key = ?", (FINISHED,))
    run(config(source), root).close()
    assert rows(root) == rows(whole)


def test_a_run_that_is_judged_again_tells_the_classes(whole: Path) -> None:
    command = [sys.executable, "-P", "-m", "archloop", "novelty", "--rejudge", str(whole)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    before, after, _ = done.stdout.splitlines()
    assert before.startswith("classes of the accepted before: ")
    assert "effective number of classes" in before
    assert before.partition(": ")[2] == after.partition(": ")[2]


def test_the_report_has_structures(whole: Path, tmp_path: Path) -> None:
    files = {p.name: p.read_text("utf-8") for p in write_report([whole], tmp_path / "out")}
    assert "### Structure" in files["report.md"]
    assert "classes-1.svg" in files
    assert "asked_at_least" in files["structures.csv"].splitlines()[0]
    assert ",skip," in files["classes.csv"]
    assert files["niches.csv"].splitlines()[0] == "run,cycle,class,macs,valid,accepted,best"
    assert files["motifs.csv"].splitlines()[0] == "run,cycle,motif,accepted"
    (grid,) = (line for line in files["report.md"].splitlines() if line.startswith("| class | <1M"))
    assert grid.count("M |") >= 1
    assert "structure_class" in files["candidates.csv"].splitlines()[0]
