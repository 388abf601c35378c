"""The command line as a person meets it: exit codes, one clear line, JSON and nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import BinaryIO

import pytest

from archloop.cli.screen import open_screen
from archloop.code.chat import render_code
from archloop.corpus.pairs import make_pair, write_pairs
from archloop.progress import Progress
from archloop.search.prompts import CIFAR10, PromptTemplate
from conftest import network
from made_runs import finished_run
from scripted_server import Reply, chat, scripted


def archloop(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "archloop", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        check=False,
    )


LLM = ("--set", "llm.model=llm")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "no-such-preset"], "no-such-preset"),
        (["run", "smoke", "--set", "loop.cycle=3"], "loop.cycle: unknown key"),
        (["run", "smoke", "--set", "loop.cycles=0"], "loop.cycles"),
        (["run", "smoke", "--set", "loop"], "KEY=VALUE"),
        (["status", "nowhere"], "nowhere"),
        (["report", "nowhere", "--out", "out"], "nowhere"),
        (["evaluate", "nowhere.py"], "nowhere.py"),
        (["novelty", ".", "--against", "no.jsonl"], "no.jsonl"),
        (["novelty", "."], "--against"),
        (["novelty", "--rejudge", "nowhere"], "nowhere"),
        (["novelty", "--rejudge", "nowhere", "--graph"], "--graph: a run's graphs are stored"),
        (["corpus", "build", "--source", "none", "--out", "x"], "seeds.source"),
        (["corpus", "build", "--source", "directory", "--out", "x"], "seeds.path"),
        (["corpus", "build", "--source", "directory", "--path", "a😀", "--out", "x"], "a😀"),
        (
            ["corpus", "build", "--source", "directory:no", "--out", "x"],
            "no such file or folder: /",
        ),
        (["corpus", "build", "--source", "", "--out", "x"], "--source"),
        (["corpus", "build", "--source", "jsonl:c.jsonl", "--out", "."], "holds files already"),
        (["corpus", "export", "whole", "--out", "x", "--prefix", "../../y"], "letters, digits"),
        (["corpus", "export", "whole", "--out", "."], "holds files already"),
        (["evaluate", "net.py", "--task", "2024"], "or a folder"),
        (["run", "smoke", "--run-dir", "net.py/run"], "Not a directory: 'net.py/run'"),
        (["run", "--run-dir", "broken"], "broken/config.json: not a run's configuration"),
        (["status", "broken"], "broken/config.json: not a run's configuration"),
        (["novelty", "net.py", "--against", "empty.jsonl"], "empty.jsonl: no network to compare"),
        (["novelty", "net.py", "--against", "text.gz"], "text.gz: not a readable corpus file"),
        (["finetune", "--corpus", "c.jsonl", "--out", "."], "exists already"),
        (["finetune", "--corpus", "c.jsonl", "--out", ""], "'--out': is empty"),
        (
            ["finetune", "--corpus", "c.jsonl", "--out", "x", "--adapter", ""],
            "'--adapter': is empty",
        ),
        (
            ["finetune", "--corpus", "c.jsonl", "--out", "x", "--adapter", "no"],
            "--adapter: 'no' is",
        ),
        (["finetune", "--corpus", "c.jsonl", "--out", "x", *LLM], "model.safetensors: no weights"),
        (["run", "smoke", "--run-dir", ""], "'--run-dir': is empty"),
        (["evaluate", ".", "--seeds", "0"], "--seeds"),
        (["evaluate", ".", "--protocol", "mine"], "--protocol"),
        (["frobnicate"], "frobnicate"),
    ],
)
def test_bad_usage_is_one_clear_line_and_exit_code_2(
    arguments: list[str], said: str, tmp_path: Path
) -> None:
    (tmp_path / "net.py").touch()
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "text.gz").write_text("no gzip")
    (tmp_path / "llm").mkdir()
    (tmp_path / "llm" / "config.json").write_text("{}")
    (tmp_path / "llm" / "model.safetensors").write_text("no weights")
    finished_run(tmp_path / "whole")
    finished_run(tmp_path / "broken").config.write_text("{")
    done = archloop(*arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert not (tmp_path / "x").exists()


def test_evaluate_prints_one_json_object_per_network(tmp_path: Path) -> None:
    (tmp_path / "good.py").write_text(network())
    (tmp_path / "torn.py").write_text("class Net(")
    (tmp_path / "large.py").write_text(network(init="self.x = nn.Linear(2000, 2000)"))
    done = archloop(
        "evaluate", "good.py", "torn.py", "large.py", "--task", "digits", "--json", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "task Digits: " in done.stderr
    rows = {row["file"]: row for row in map(json.loads, done.stdout.splitlines())}
    assert {file: row["outcome"] for file, row in rows.items()} == {
        "good.py": "valid",
        "torn.py": "syntax_error",
        "large.py": "over_budget",
    }
    good = rows["good.py"]
    assert 0.0 <= good["first_epoch_accuracy"] <= 1.0
    assert good["n_params"] > 0
    assert good["isolation"] == "confined"
    assert len(good["code_sha256"]) == 64
    assert len(good["protocol"]) == 12
    assert good["training"] == "contract"
    assert good["flags"] == []
    assert rows["torn.py"]["error"].startswith("SyntaxError")
    assert rows["large.py"]["hint"].startswith("use fewer or narrower layers")


def test_evaluate_takes_folders_and_seeds_and_tells_what_to_change(tmp_path: Path) -> None:
    (tmp_path / "nets").mkdir()
    (tmp_path / "nets" / "good.py").write_text(network())
    (tmp_path / "nets" / "loose.py").write_text(network(forward="x = nn.functional.dropout(x)"))
    task = ["--task", "digits", "--set", "protocol.train_images=300"]
    many = ["--seeds", "3", "--protocol", "both", "--isolation", "process"]
    done = archloop("evaluate", "nets", *task, *many, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = {row["id"]: row for row in map(json.loads, done.stdout.splitlines())}
    good = rows["good"]
    assert (good["isolation"], good["training"]) == ("process", "both")
    assert len(set(good["accuracies"])) > 1
    assert good["first_epoch_accuracy"] == pytest.approx(sum(good["accuracies"]) / 3, abs=1e-6)
    low, high = good["accuracy_interval"]
    assert low < good["first_epoch_accuracy"] < high
    assert good["harness_accuracy"] is not None
    assert rows["loose"]["flags"][0] == "stochastic"
    assert "self.training" in rows["loose"]["hint"]
    plain = archloop("evaluate", "nets/loose.py", *task, cwd=tmp_path)
    assert "flags: stochastic\n    it is random" in plain.stdout


@pytest.mark.parametrize("closed", ["<&-", "2>&-", "<&- 2>&-"])
def test_a_closed_stream_is_no_fault_of_the_network(tmp_path: Path, closed: str) -> None:
    (tmp_path / "net.py").write_text(network())
    command = [sys.executable, "-P", "-m", "archloop", "evaluate", "net.py", "--task", "digits"]
    command += ["--set", "protocol.train_images=300"]
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {closed}', "sh", *command],
        stdout=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0
    assert "valid, first-epoch accuracy" in done.stdout


def test_novelty_compares_with_the_corpus_and_the_files_before(tmp_path: Path) -> None:
    prompt = PromptTemplate().render(CIFAR10, 500_000)
    known = network(init="; ".join(f"self.a{i} = {i}" for i in range(50)))
    fresh = network(init="; ".join(f"self.b{i} = b{i}()" for i in range(200)))
    write_pairs(tmp_path / "corpus.jsonl", [make_pair(prompt, known, {"source": "seed-1"})])
    for name, code in (("copy", known), ("fresh", fresh), ("twin", fresh), ("torn", "def (")):
        (tmp_path / f"{name}.py").write_text(code)
    files = ["copy.py", "fresh.py", "twin.py", "torn.py"]
    done = archloop("novelty", *files, "--against", "corpus.jsonl", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    copy, fresh_row, twin, torn = map(json.loads, done.stdout.splitlines())
    assert (copy["nn_jaccard_train"], copy["near_dup_text_train"]) == (1.0, True)
    assert copy["nearest"] == "seed-1"
    assert (fresh_row["near_dup_text_train"], fresh_row["outcome"]) == (False, "valid")
    assert (twin["nn_jaccard_gen"], twin["nearest"]) == (1.0, "fresh.py")
    assert (copy["rejection_count"], fresh_row["rejection_count"]) == (0, 1)
    assert torn["outcome"] == "syntax_error"
    shown = archloop("novelty", "copy.py", "--against", "corpus.jsonl", cwd=tmp_path)
    assert "(the same once cleaned)" in shown.stdout
    # The seed is too different to be retrieved, and nothing was accepted before.
    assert (fresh_row["nn_jaccard_train"], fresh_row["nn_normalized_gen"]) == (None, None)
    alone = archloop("novelty", "fresh.py", "--against", "corpus.jsonl", cwd=tmp_path)
    none = "no neighbour found"
    assert alone.stdout == f"fresh.py: J_train {none}, J_gen {none}, nearest -\n"


def test_novelty_by_graph_sees_through_names_and_shows_the_difference(tmp_path: Path) -> None:
    prompt = PromptTemplate().render(CIFAR10, 500_000)
    write_pairs(tmp_path / "corpus.jsonl", [make_pair(prompt, network(), {"source": "seed-1"})])
    renamed = network().replace("self.conv", "self.first").replace("self.head", "self.last")
    (tmp_path / "renamed.py").write_text(renamed)
    (tmp_path / "other.py").write_text(network().replace("kernel_size=3", "kernel_size=5"))
    files = ["renamed.py", "other.py", "--against", "corpus.jsonl"]
    done = archloop("novelty", *files, "--graph", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    first, second = map(json.loads, done.stdout.splitlines())
    assert (first["near_dup_graph_train"], first["nearest_graph"]) == (True, "seed-1")
    assert (second["near_dup_graph_train"], second["near_dup_graph_gen"]) == (False, False)
    assert second["nn_graph_train"] < 1.0
    strict = archloop("novelty", *files, "--set", "novelty.kind=graph", cwd=tmp_path)
    assert "renamed.py" in strict.stdout
    assert "(near-duplicate)" in strict.stdout.splitlines()[0]
    assert "+        self.first = nn.Conv2d" in strict.stdout
    # The second network's motifs are those with its kernel of 5x5.
    assert second["measures"]["depth"] == first["measures"]["depth"] == 2
    assert second["new_motifs"] and all("conv 5x5" in motif for motif in second["new_motifs"])
    assert first["new_motifs"] == []
    counted = "; effective number of classes 1.0; niches 1"
    assert strict.stdout.splitlines()[-2:] == [
        f"classes: plain 2{counted}; operator motifs in no known network "
        f"{len(second['new_motifs'])}",
        f"classes of the novel: plain 1{counted}",
    ]


def test_text_of_others_is_shown_without_escape_sequences(tmp_path: Path) -> None:
    title = "\x1b]0;owned\x07"
    code = f"class Net:\n\tname = '{title}'"
    prompt = PromptTemplate().render(CIFAR10, 500_000)
    seed = make_pair(prompt, network(), {"source": f"seed{title}"})
    write_pairs(tmp_path / "corpus.jsonl", [seed])
    (tmp_path / "net.py").write_text(network())

    def answer(n: int, _body: object) -> Reply:
        refusal = Reply({"error": {"message": title}}, status=400)
        return refusal if n else chat(render_code(code))

    with scripted(answer) as server:
        keys = ("task.name=digits", f"openai.base_url={server.url}", "llm.model=m")
        ask = ["generate", "-n", "1", "--config", "openai"]
        ask += [part for key in keys for part in ("--set", key)]
        sampled, refused = archloop(*ask, cwd=tmp_path), archloop(*ask, cwd=tmp_path)
    compared = archloop("novelty", "net.py", "--against", "corpus.jsonl", cwd=tmp_path)
    shown = [done.stdout + done.stderr for done in (sampled, refused, compared)]
    assert [("owned" in text, "\x1b" in text or "\x07" in text) for text in shown] == [
        (True, False)
    ] * 3
    assert "\tname = ']0;owned'" in sampled.stdout


def test_a_cache_that_is_a_file_is_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "net.py").write_text(network())
    monkeypatch.setenv("ARCHLOOP_CACHE", "net.py")
    done = archloop("evaluate", "net.py", "--task", "digits", cwd=tmp_path)
    last = done.stderr.splitlines()[-1]
    assert (done.returncode, last) == (2, "archloop: [Errno 20] Not a directory: 'net.py/locks'")
    begun = archloop("run", "smoke", *LLM, cwd=tmp_path)
    said = f"archloop: {tmp_path}/net.py: the cache cannot be written: File exists; name a folder"
    assert begun.returncode == 2
    assert begun.stderr.splitlines()[-1].startswith(said)


@pytest.mark.parametrize("name", ["[red]x", "[/x]"])
def test_brackets_are_no_markup(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finished_run(tmp_path / name)
    assert archloop("status", name, cwd=tmp_path).stdout.startswith(f"{name}: ")
    with open_screen() as screen:
        screen.message(name)
        screen.update(Progress("stage", detail=name))
        screen.update(Progress("select"))
    assert capsys.readouterr().err == f"{name}\nstage: {name}\nselect\n"


@pytest.mark.parametrize("arguments", [["--help"], ["status", "run"], ["status", "run", "--json"]])
def test_a_reader_that_leaves_is_no_fault_and_a_full_disk_is(
    arguments: list[str], tmp_path: Path
) -> None:
    finished_run(tmp_path / "run")

    def ended(stdout: BinaryIO) -> tuple[int, str]:
        command = [sys.executable, "-P", "-m", "archloop", *arguments]
        done = subprocess.run(
            command, stdout=stdout, stderr=subprocess.PIPE, text=True, cwd=tmp_path, check=False
        )
        return done.returncode, done.stderr

    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as left, Path("/dev/full").open("wb") as full:
        assert ended(left) == (0, "")
        assert ended(full) == (2, "archloop: [Errno 28] No space left on device: 'stdout'\n")


def test_bars_of_other_libraries_are_off() -> None:
    """They would tear the live lines."""
    code = """
from archloop.cli import cli
try:
    cli.main(["status", "nowhere"], standalone_mode=False)
except Exception:
    pass
import tqdm, tqdm.auto
from huggingface_hub.utils import tqdm as hub
for bar in (tqdm.tqdm, tqdm.auto.tqdm, hub):
    assert len(list(bar(range(3)))) == 3
"""
    bare = {k: v for k, v in os.environ.items() if not k.startswith(("TQDM", "HF_"))}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=bare, check=False
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_help_names_every_command() -> None:
    done = archloop("--help")
    assert done.returncode == 0
    for command in (
        "run",
        "status",
        "show",
        "report",
        "corpus",
        "generate",
        "evaluate",
        "novelty",
        "cache",
    ):
        assert command in done.stdout
