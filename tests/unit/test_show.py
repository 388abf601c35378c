"""``archloop show``: one candidate, whatever a hostile LLM wrote."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from archloop.cli import cli
from archloop.code.chat import render_code
from archloop.errors import UsageError
from archloop.store.run_dir import RunDir
from archloop.store.store import Store
from archloop.text import visible
from archloop.types import (
    PROFILE,
    Completion,
    CycleStats,
    Decision,
    GraphSketch,
    NoveltyScores,
    Origin,
    Outcome,
    Request,
    Verdict,
)
from made_runs import CONFIG

CODE = "class Net:\n    name = '[bold]x[/bold] :smile: \x1b[31m'"
HOSTILE = f"Look: \x1b]0;title\x07[red]no[/red] :smile: \u202eevil\n{render_code(CODE)}"
PROMPT = "Write a network \x1b[2J[blink]."
ERROR = "RuntimeError: \x1b[1m[link=x]"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cycle of four: near-duplicate, accepted, failed, and one without a verdict; no commit."""
    paths = RunDir(tmp_path_factory.mktemp("runs") / "run")
    paths.root.mkdir()
    paths.config.write_text(CONFIG.model_dump_json(), "utf-8")
    origin = Origin("feedback", "abc", ("c01-0001",))
    with Store(paths.database) as store:
        for cycle in (1, 2):
            messages = ({"role": "system", "content": "Be brief."},)
            messages += ({"role": "user", "content": PROMPT},)  # type: ignore[assignment]
            store.add_requests(
                [Request(cycle, i, 70 + i, "cifar10", messages, 0.5, origin) for i in range(4)]
            )
            store.add_completions([Completion(cycle, i, HOSTILE, 33, "length") for i in range(4)])
            for index in (0, 1):
                profile = dict.fromkeys(PROFILE, 0.0) | {"macs": 5000.0, "gates": 2.0, "depth": 4.0}
                graph = GraphSketch("abc", bytes(8), profile=profile)
                verdict = Verdict(
                    Outcome.VALID, None, 1234, 0.5, 2.5, flags=("batch",), graph=graph
                )
                add(store, cycle, index, verdict)
            add(store, cycle, 2, Verdict(Outcome.FORWARD_ERROR, ERROR))
        add(store, 1, 3, Verdict(Outcome.NO_CODE, "why"), code=None)
        scores = NoveltyScores(
            0.25, False, 0.9375, True, "c01-0001", 0.5, 0.75, 0.1, 0.2, False, False, "seed:[b]a"
        )
        decisions = [
            Decision("c01-0000", Outcome.NEAR_DUPLICATE, scores, 0, ("text",)),
            Decision("c01-0001", Outcome.ACCEPTED, scores, 0),
        ]
        store.commit_cycle(STATS, decisions)
    return paths.root


def add(store: Store, cycle: int, index: int, verdict: Verdict, code: str | None = CODE) -> None:
    store.add_verdict(
        cycle,
        index,
        verdict=verdict,
        code=code,
        code_sha256=None,
        isolation="confined",
        protocol="p1",
        training="contract",
    )


STATS = CycleStats(
    cycle=1,
    n_gen=4,
    n_valid=2,
    n_at_floor=2,
    n_near_duplicate=1,
    n_accepted=1,
    accuracies=(0.5, 0.5),
    corpus_size=1,
    adapter="a",
    corpus_sha256="c",
    outcomes={"near_duplicate": 1, "accepted": 1, "forward_error": 1, "no_code": 1},
    threshold=0.4,
)


def show(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["show", *arguments], catch_exceptions=False)


def test_everything_about_a_candidate_is_shown(run: Path) -> None:
    lines = show(str(run), "c01-0000").output.split("\n")
    for line in [
        "== prompt, system ==",
        "Be brief.",
        "== prompt, user ==",
        "== completion: 33 tokens, ended by length ==",
        "== code ==",
        "== c01-0000 ==",
        "outcome: near_duplicate",
        "flags: batch",
        "first_epoch_accuracy: 50.00%",
        "n_params: 1,234 parameters",
        "train_seconds: 2.5 seconds",
        "macs: 5,000 multiply-accumulates",
        "structure: gate",
        "depth: 4 layers",
        "decision: near_duplicate, rejected by text (threshold of the cycle 40.00%)",
        "similarity: J_train 0.2500, J_gen 0.9375; with names and numbers folded 0.5000 and 0.7500",
        "nearest by text: c01-0001 (accepted, 50.00%)",
        "similarity by graph: train 0.1000, gen 0.2000",
        "nearest by graph: seed:[b]a",
        "isolation: confined",
        "request: feedback, from c01-0001, seed 70, temperature 0.5, task cifar10",
    ]:
        assert line in lines
    assert "error: " not in "\n".join(lines)


@pytest.mark.parametrize("terminal", [False, True])
def test_what_a_terminal_would_obey_is_shown_and_not_sent(
    run: Path, terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
    output = show(str(run), "c01-0002").output
    assert "[2J[blink]." in output.replace("\\x1b", "")
    for said in (
        r"\x1b]0;title\x07[red]no[/red] :smile: \u202eevil",
        "error: RuntimeError:  [1m",
    ):
        assert said in output
    assert not {"\x07", "\u202e"} & set(output)
    assert "\x1b[31m'" not in output
    assert ("\x1b" in output) is terminal, "the code is in colours on a terminal alone"


def test_a_candidate_without_a_decision_or_a_verdict(run: Path) -> None:
    assert "decision: none yet: the cycle is not committed" in show(str(run), "c02-0001").output
    pending = show(str(run), "c02-0003").output
    assert "outcome: no verdict yet" in pending
    assert "== code ==" not in pending
    assert "error: why" in show(str(run), "1-3").output


def test_json_has_it_all_in_one_line(run: Path) -> None:
    row = json.loads(show(str(run), "c01-0000", "--json").output)
    assert (row["id"], row["outcome"], row["rejected_by"]) == (
        "c01-0000",
        "near_duplicate",
        ["text"],
    )
    assert (row["code"], row["completion"], row["threshold"]) == (CODE, HOSTILE, 0.4)
    assert [m["role"] for m in row["prompt"]] == ["system", "user"]
    assert row["measures"]["macs"] == 5000.0
    assert row["measures"]["gates"] == 2.0
    pending = json.loads(show(str(run), "c02-0003", "--json").output)
    assert (pending["id"], pending["outcome"], pending["code"]) == ("c02-0003", None, None)


@pytest.mark.parametrize("named", ["c01-0004", "c03-0000", "nonsense\x1b[1m", "", "c1-99999999999"])
def test_an_unknown_candidate_is_a_line_that_says_which_there_are(run: Path, named: str) -> None:
    with pytest.raises(UsageError) as raised:
        show(str(run), named)
    assert str(raised.value) == (
        f"{run}: no candidate '{visible(named)}'; "
        "there are c01-0000 to c01-0003, c02-0000 to c02-0003"
    )


def test_a_published_run_can_be_looked_at() -> None:
    output = show(
        str(Path(__file__).parents[2] / "docs" / "runs" / "embedded-fp32"), "c03-0008"
    ).output
    assert "none stored" in output
    assert "outcome: accepted" in output
