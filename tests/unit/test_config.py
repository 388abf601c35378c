from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest
from pydantic import BaseModel

import archloop
from archloop.config import (
    RunConfig,
    changed_keys,
    config_digest,
    load_config,
    preset_names,
    resolve,
    resolve_stored,
)
from archloop.errors import ConfigError


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_is_valid_and_survives_json(name: str) -> None:
    config = load_config(name)
    assert RunConfig.model_validate_json(config.model_dump_json()) == config


def test_all_presets_are_listed() -> None:
    assert {"demo", "embedded", "paper", "smoke"} <= set(preset_names())
    assert load_config() == load_config("embedded")


PAPER = {
    "llm.model": "deepseek-ai/deepseek-coder-7b-instruct-v1.5",
    "llm.dtype": "bfloat16",
    "llm.warm_start": None,
    "seeds.source": "lemur",
    "seeds.variant": "two_prompts",
    "seeds.narrow": 0,
    "generation.temperature": 0.20,
    "generation.top_k": 50,
    "generation.top_p": 0.9,
    "generation.max_new_tokens": 2048,
    "task.name": "cifar10",
    "task.max_params": 500_000,
    "novelty.enabled": True,
    "novelty.shingle_size": 10,
    "novelty.permutations": 256,
    "novelty.lsh_threshold": 0.85,
    "novelty.near_duplicate_threshold": 0.90,
    "selection.min_accuracy": 0.40,
    "finetune.enabled": True,
    "finetune.init": "base",
    "finetune.lora_r": 32,
    "finetune.lora_alpha": 32,
    "finetune.lora_dropout": 0.05,
    "finetune.epochs": 5,
    "finetune.max_steps": None,
    "finetune.lr": 1e-5,
    "finetune.scheduler": "cosine",
    "finetune.warmup_steps": 20,
    "finetune.weight_decay": 0.01,
    "finetune.max_grad_norm": 1.0,
    "finetune.batch_size": 1,
    "finetune.grad_accumulation": 4,
    "finetune.layers": 24,
    "finetune.processes": 1,
    "finetune.packing": False,
    "finetune.quantization": "none",
    "finetune.dev_share": 0.0,
    "finetune.patience": None,
    "finetune.optimizer": "paged_adamw_8bit",
    "loop.cycles": 22,
}


@pytest.mark.parametrize(("key", "value"), PAPER.items())
def test_the_paper_preset_has_the_papers_numbers(key: str, value: object) -> None:
    section, name = key.split(".")
    assert getattr(getattr(load_config("paper"), section), name) == value


def test_the_paper_adapts_all_seven_projections() -> None:
    assert set(load_config("paper").finetune.target_modules) == {
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "up_proj",
        "down_proj",
        "gate_proj",
    }


@pytest.mark.parametrize(
    ("override", "key", "allowed"),
    [
        ("loop.cycle=3", "loop.cycle", "completions, cycles"),
        ("lop.cycles=3", "lop", "loop"),
        ("loop.cycles=0", "loop.cycles", "greater than or equal to 1"),
        ("loop.cycles=three", "loop.cycles", "integer"),
        ("loop.cycles=2.5", "loop.cycles", "integer"),
        ("llm.dtype=float16", "llm.dtype", "'bfloat16' or 'float32'"),
        ("selection.min_accuracy=40", "selection.min_accuracy", "less than or equal to 1"),
        ("generation.top_p=0", "generation.top_p", "greater than 0"),
        ("generation.engine=vllm2", "generation.engine", "'openvino'"),
        ("sandbox.isolation=none", "sandbox.isolation", "'process', 'confined' or 'bwrap'"),
        ("sandbox.memory_mb=1", "sandbox.memory_mb", "256"),
        ("protocol.validation=train", "protocol.validation", "'holdout:N'"),
        ("protocol.validation=holdout:0", "protocol.validation", "'holdout:N'"),
        ("protocol.momentum=1.0", "protocol.momentum", "less than 1"),
        ("seeds.source=lemurs", "seeds.source", "'lemur', 'designs', 'packaged', 'directory'"),
        ("seeds.source=jsonl", "seeds.path", "required by seeds.source"),
        ("generation.engine=replay", "generation.replay_from", "required"),
        ("generation.replay_from=runs/a", "generation.replay_from", "only with"),
        ("finetune.lora_dropout=1.0", "finetune.lora_dropout", "less than 1"),
        ("finetune.epochs=inf", "finetune.epochs", "finite number"),
        ("finetune.lr=nan", "finetune.lr", "finite number"),
        ("finetune.target_modules=[]", "finetune.target_modules", "at least 1 item"),
        ("seed=-1", "seed", "greater than or equal to 0"),
        ("seed=true", "seed", "a number, not true or false"),
        ("finetune.max_steps=false", "finetune.max_steps", "a number, not true or false"),
        ("seed=" + "9" * 6000, "seed", "integer"),
        ("seed=" + "[" * 9000, "seed", "integer"),
        ("sandbox.memory_mb=99999999999", "sandbox.memory_mb", "less than or equal to 16777216"),
        ("sandbox.build_seconds=1e300", "sandbox.build_seconds", "less than or equal to 604800"),
        ("loop.completions=10000000000", "loop.completions", "less than or equal to 100000"),
        ("novelty.permutations=1000000", "novelty.permutations", "less than or equal to 4096"),
        ("llm=smollm2", "llm", "a section with keys of its own"),
        ("finetune.target_modules=q_proj", "finetune.target_modules", "a list"),
        ("llm.revision=main", "llm.revision", "Hugging Face Hub"),
    ],
)
def test_impossible_values_are_refused_naming_key_and_what_is_allowed(
    override: str, key: str, allowed: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config("smoke", [override])
    assert key in str(caught.value)
    assert allowed in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700


def test_replay_of_old_pairs_needs_the_previous_adapter() -> None:
    with pytest.raises(ConfigError, match=r"finetune\.replay"):
        load_config("paper", ["finetune.replay=4"])
    assert load_config("paper", ["finetune.replay=4", "finetune.init=previous"])


@pytest.mark.parametrize("text", ["loop.cycles", "=3", "loop..cycles=3", "llm.model.x=1"])
def test_a_malformed_override_is_refused_and_quoted(text: str) -> None:
    with pytest.raises(ConfigError, match="--set"):
        load_config("smoke", [text])


def test_the_preset_gives_way_to_the_file_and_the_file_to_the_override(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('preset = "paper"\nseed = 5\n[loop]\ncycles = 3\n[task]\nname = "mnist"\n')
    config = load_config(path, ["loop.cycles=4", "seeds.max_tokens=900", "llm.revision=abc"])
    assert config.loop.cycles == 4, "override"
    assert (config.seed, config.task.name) == (5, "mnist"), "file"
    assert config.finetune.lora_r == 32, "preset"
    assert config.loop.completions == 150, "the rest of a section stays"
    assert (config.seeds.max_tokens, config.llm.revision) == (900, "abc")


def test_a_file_without_a_preset_starts_from_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("[loop]\ncycles = 3\n")
    assert load_config(path).finetune == RunConfig().finetune


def test_an_override_may_set_nothing_and_the_last_one_wins() -> None:
    config = load_config("demo", ["finetune.max_steps=none", "seed=1", "seed=2"])
    assert config.finetune.max_steps is None
    assert config.seed == 2


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("[loop", "not valid TOML"),
        ('preset = "papers"', "'papers' unknown; allowed: demo"),
        ("[loop]\ncycles = true\nrounds = 3", "loop.rounds: unknown key"),
        ("[loop]\ncycles = 0", "mine.toml: loop.cycles"),
        ("preset = 3", "preset: 3 unknown"),
        ("preset = [[]]", "preset: [[]] unknown"),
        ("seed = " + "[" * 9000, "mine.toml: not valid TOML: nested too deep"),
        ("seed = " + "9" * 6000, "mine.toml: not valid TOML"),
    ],
)
def test_a_faulty_file_is_named(tmp_path: Path, text: str, what: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert what in str(caught.value)


def test_a_fault_of_the_command_line_is_not_the_files(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("\ufeff[loop]\ncycles = 3\n", "utf-8")
    assert load_config(path).loop.cycles == 3, "with a byte order mark"
    with pytest.raises(ConfigError, match=r"^loop\.cycles"):
        load_config(path, ["loop.cycles=0"])
    with pytest.raises(ConfigError, match=r"^task\.max_params"):
        load_config(path, flags={"task.max_params": 0})


def test_a_run_is_no_configuration_file(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match=f"--run-dir {tmp_path}"):
        load_config(tmp_path)


def test_text_of_several_lines_stays_whole() -> None:
    text = "3\nseed = 5\n{dataset}"
    assert load_config("smoke", [f"prompt.user={text}"]).prompt.user == text


def test_an_absent_file_is_refused_with_the_presets() -> None:
    with pytest.raises(ConfigError, match=r"papr: no such file or preset; presets are demo,"):
        load_config("papr")


def test_all_faults_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        resolve({"loop": {"cycles": 0}, "seed": -1})
    assert "loop.cycles" in str(caught.value)
    assert "seed" in str(caught.value)


def test_changed_keys_names_old_and_new() -> None:
    old = load_config("paper")
    new = load_config("paper", ["loop.cycles=3", "task.image_size=64"])
    assert changed_keys(old, old) == []
    assert changed_keys(old, new) == ["loop.cycles: 22 -> 3", "task.image_size: None -> 64"]


RUNS = Path(__file__).parents[2] / "docs" / "runs"


@pytest.mark.parametrize("run", sorted(folder.name for folder in RUNS.iterdir()))
def test_a_published_run_can_be_repeated(run: str) -> None:
    """Whatever the preset has become since."""
    kept = resolve_stored(json.loads((RUNS / run / "config.json").read_text()))
    dtype = [f"llm.dtype={kept.llm.dtype}"]  # 'auto', as the machine took it
    assert changed_keys(kept, load_config(RUNS / run / "config.toml", dtype)) == []


def test_the_preset_is_that_of_the_last_published_run() -> None:
    """But for the cost that it limits, which no longer depends on the machine."""
    as_there = ["llm.dtype=float32", "protocol.precision=fp32"]
    as_there += ["selection.max_macs=none", "selection.max_train_seconds=75"]
    kept = resolve_stored(json.loads((RUNS / "embedded-fp32" / "config.json").read_text()))
    assert changed_keys(kept, load_config("embedded", as_there)) == []


def test_the_digest_follows_the_content_alone() -> None:
    config = load_config("paper")
    assert config_digest(config) == config_digest(load_config("paper"))
    assert config_digest(config) != config_digest(load_config("paper", ["seed=1"]))
    assert config_digest({"a": 1, "b": 2}) == config_digest({"b": 2, "a": 1})
    assert len(config_digest(config.protocol)) == 12


def test_every_field_is_read_somewhere() -> None:
    """A flag that does nothing is worse than none."""
    source = Path(archloop.__file__).parent
    read = {
        node.attr
        for path in source.rglob("*.py")
        if path.name != "config.py"
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Attribute)
    }
    for name, field in RunConfig.model_fields.items():
        assert name in read
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            assert set(field.annotation.model_fields) <= read, name


def test_kinds_of_novelty_are_one_or_a_list() -> None:
    assert load_config("smoke", ["novelty.kind=graph"]).novelty.kind == ("graph",)
    both = load_config("smoke", ['novelty.kind=["lexical", "graph"]'])
    assert both.novelty.kind == ("lexical", "graph")
    for wrong in ("novelty.kind=[]", "novelty.kind=text", 'novelty.kind=["graph", "graph"]'):
        with pytest.raises(ConfigError, match=r"novelty\.kind.*'?lexical'?"):
            load_config("smoke", [wrong])


def test_none_unsets_a_key_that_may_be_unset_and_no_other(tmp_path: Path) -> None:
    file = tmp_path / "my.toml"
    file.write_text('preset = "embedded"\n[llm]\nwarm_start = "none"\n[seeds]\nsource = "none"\n')
    unset = ["selection.percentile=none", "finetune.quantization=none"]
    for config in (
        load_config(file, unset),
        load_config("embedded", ["llm.warm_start=none", "seeds.source=none", *unset]),
    ):
        assert config.llm.warm_start is None
        assert config.selection.percentile is None
        assert (config.seeds.source, config.finetune.quantization) == ("none", "none")
    with pytest.raises(ConfigError, match=r"loop\.cycles.*'none'"):
        load_config("embedded", ["loop.cycles=none"])
