from __future__ import annotations

import json
import shutil
import socket
import sys
import threading
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from PIL import Image

from archloop.config import RunConfig, load_config
from archloop.doctor import diagnose as doctor
from archloop.doctor.diagnose import Check, diagnose
from archloop.doctor.preflight import preflight, preflight_rows
from archloop.doctor.requirements import Gpu
from archloop.errors import ConfigError, UsageError
from archloop.evaluation import local
from archloop.machine.downloads import cache_dir
from archloop.tasks import open_source
from archloop.tasks.arrays import decoded_folder
from scripted_server import chat, scripted

ONLY_CPU = pytest.mark.skipif(torch.cuda.is_available(), reason="speaks of machines without a GPU")


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine of its own: an empty cache, and a hub that nobody answers for."""
    monkeypatch.setenv("ARCHLOOP_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("ARCHLOOP_DATA", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")


def look(config: RunConfig | str, run_dir: Path = Path("runs")) -> dict[str, Check]:
    checks = diagnose(config, run_dir, attack_sandbox=False)
    return {check.name: check for check in checks}


@ONLY_CPU
@pytest.mark.parametrize(
    ("limits", "named"),
    [
        (["selection.max_train_seconds=70"], "selection.max_train_seconds = 70"),
        (["sandbox.train_seconds=60"], "sandbox.train_seconds = 60"),
        (["selection.max_train_seconds=none"], "sandbox.train_seconds = 300"),
    ],
)
def test_a_processor_without_bf16_is_named(
    monkeypatch: pytest.MonkeyPatch, limits: list[str], named: str
) -> None:
    config = load_config("embedded", limits)
    monkeypatch.setattr(doctor, "computes_in_bf16", lambda: True)
    assert "processor" not in look(config)
    monkeypatch.setattr(doctor, "computes_in_bf16", lambda: False)
    found = look(config)["processor"]
    assert "float32" in found.detail
    assert named in found.needed


def test_packaged_seeds_are_found_by_name() -> None:
    found = look("embedded")["seeds"]
    assert (found.ok, found.detail) == (True, "packaged with smollm2-135m-lemur")
    wrong = look(load_config("embedded", ["seeds.path=nobody"]))["seeds"]
    assert wrong.ok is False
    assert "nobody" in wrong.needed


@ONLY_CPU
def test_the_paper_on_a_laptop_lists_everything_that_is_missing() -> None:
    checks = look("paper")
    missing = {name for name, check in checks.items() if check.ok is False}
    assert {"GPU", "LLM", "task"} <= missing
    assert ("package bitsandbytes" in missing) == (find_spec("bitsandbytes") is None)
    assert "billion parameters" in checks["GPU"].needed
    assert "generation.batch_size" in checks["GPU"].needed
    assert "14 GiB to download" in checks["LLM"].needed
    assert "ARCHLOOP_DATA" in checks["task"].needed
    assert all(check.needed for check in checks.values() if check.ok is False)
    assert not any(check.needed for check in checks.values() if check.ok is True)


def test_what_is_here_is_found_good() -> None:
    checks = look(load_config("smoke", ["llm.warm_start=none", "sandbox.memory_mb=256"]))
    for name in (
        "Python",
        "torch",
        "GPU",
        "memory",
        "package accelerate",
        "task",
        "disk, run",
        "isolation",
    ):
        assert checks[name].ok, checks[name]
    assert checks["LLM"].ok is None
    assert "package index" in checks["LLM"].needed


def test_a_local_llm_is_measured_by_its_own_shape(tmp_path: Path) -> None:
    folder = tmp_path / "llm-99b"
    folder.mkdir()
    assert look(load_config("smoke", [f"llm.model={folder}"]))["LLM"].ok is False
    shape = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "vocab_size": 1000,
    }
    (folder / "config.json").write_text(json.dumps(shape))
    checks = look(load_config("smoke", [f"llm.model={folder}"]))
    assert checks["LLM"].ok
    assert checks["GPU"].ok, "99b in its name, but small by its config.json"


@pytest.mark.parametrize(
    ("override", "name", "what"),
    [
        ("llm.warm_start=no-such-adapter", "warm-start adapter", "no-such-adapter"),
        ("task.name=no-such-task", "task", "no-such-task"),
        ("llm.model=models/My LLM", "LLM", "models/My LLM"),
        ("llm.model=modèle", "LLM", "modèle"),
        ("sandbox.workers=1024", "memory", "1024 candidates"),
    ],
)
def test_what_is_wrong_is_named(override: str, name: str, what: str) -> None:
    check = look(load_config("smoke", [override]))[name]
    assert check.ok is False
    assert what in check.needed


def test_a_warm_start_that_a_fine_tune_cannot_go_on_from_is_named() -> None:
    wrong = look(load_config("embedded", ["finetune.lora_r=8"]))["warm-start adapter"]
    assert wrong.ok is False
    assert "smollm2-135m-lemur has r 16" in wrong.needed
    never = load_config("embedded", ["finetune.lora_r=8", "finetune.enabled=false"])
    assert look(never)["warm-start adapter"].ok


def test_damaged_files_of_an_llm_are_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").touch()
    wrong = look(load_config("smoke", [f"llm.model={tmp_path}"]))["LLM"]
    assert (wrong.ok, "model.safetensors: no weights" in wrong.needed) == (False, True)
    (tmp_path / "config.json").write_text("no")
    assert (
        "config.json: no JSON"
        in look(load_config("smoke", [f"llm.model={tmp_path}"]))["LLM"].needed
    )


def test_a_cache_that_cannot_be_written_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("ARCHLOOP_CACHE", str(tmp_path / "file"))
    check = look("embedded")["cache"]
    assert check.ok is False
    assert f"{tmp_path}/file: the cache cannot be written: File exists" in check.needed
    assert "ARCHLOOP_CACHE" in check.needed


def test_absent_seed_files_and_replayed_runs_are_named(tmp_path: Path) -> None:
    config = load_config(
        "smoke",
        [
            "seeds.source=jsonl",
            f"seeds.path={tmp_path / 'seeds.jsonl'}",
            "generation.engine=replay",
            f"generation.replay_from={tmp_path}",
        ],
    )
    checks = look(config)
    assert checks["seeds"].ok is False
    assert checks["replayed run"].ok is False
    (tmp_path / "seeds.jsonl").touch()
    (tmp_path / "run.db").touch()
    checks = look(config)
    assert checks["seeds"].ok
    assert checks["replayed run"].ok


def look_at_server(url: str, *overrides: str) -> dict[str, Check]:
    return look(load_config("openai", [f"openai.base_url={url}", "llm.model=m", *overrides]))


def test_a_server_is_asked_what_it_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_KEY", "secret")
    with scripted(lambda _n, _body: chat("x")) as server:
        checks = look_at_server(server.url, "openai.api_key_env=A_KEY")
        other = look_at_server(server.url, "llm.model=other", "openai.cap_tokens=5")
    assert checks["LLM"].ok
    assert checks["API key"].ok
    assert checks["caps"].ok is None
    assert checks["GPU"].ok
    assert checks["generation engine"].ok
    assert "package trl" not in checks, "nothing is fine-tuned"
    assert "secret" not in str(checks)
    assert other["LLM"].ok is None
    assert "lists other models: m" in other["LLM"].detail
    assert "caps" not in other


def test_a_port_that_speaks_no_http_is_named() -> None:
    def greet(server: socket.socket) -> None:
        connection, _ = server.accept()
        with connection:
            connection.sendall(b"SSH-2.0-OpenSSH_9.9\r\n")
            connection.recv(1000)

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=greet, args=(server,))
        thread.start()
        found = look_at_server(f"http://127.0.0.1:{server.getsockname()[1]}/v1")["LLM"]
        thread.join()
    assert found.ok is False
    assert found.detail.endswith("answers, but not by HTTP")


def test_a_server_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("A_KEY", raising=False)
    assert look_at_server("http://127.0.0.1:9/v1")["LLM"].ok is False
    check = look_at_server("http://127.0.0.1:9/v1", "openai.api_key_env=A_KEY")["API key"]
    assert check.ok is False
    assert check.needed == "openai.api_key_env: the variable A_KEY is not set"


@pytest.mark.parametrize(("engine", "extra"), [("vllm", "vllm"), ("openai", "openai")])
def test_a_missing_extra_is_named(engine: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, extra, None)
    preset = {"openai": "openai", "vllm": "embedded"}[engine]
    check = look(load_config(preset, [f"generation.engine={engine}"]))["generation engine"]
    assert check.ok is False
    assert f"pip install 'archloop[{extra}]'" in check.needed


@ONLY_CPU
def test_vllm_needs_a_gpu_whatever_the_llm() -> None:
    check = look(load_config("embedded", ["generation.engine=vllm"]))["GPU"]
    assert check.ok is False
    assert "generation.engine = 'vllm'" in check.needed


def test_auto_falls_back_to_digits_and_says_so() -> None:
    check = look(load_config("smoke", ["task.name=auto"]))["task"]
    assert check.ok
    assert check.detail.startswith("digits, as CIFAR-10 cannot be had")


def test_a_data_set_in_the_cache_is_enough(tmp_path: Path) -> None:
    (tmp_path / "datasets" / "uoft-cs___cifar10").mkdir(parents=True)
    assert look("embedded")["task"].ok


def test_a_full_disk_is_seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    full = shutil.disk_usage(tmp_path)._replace(free=2**20)
    monkeypatch.setattr("archloop.doctor.checks.shutil.disk_usage", lambda _path: full)
    check = look("embedded", tmp_path / "not" / "there")["disk, run"]
    assert check.ok is False
    assert "GiB" in check.needed


def test_the_sandbox_is_really_attacked() -> None:
    names = [check.name for check in diagnose("smoke")]
    assert any(name.startswith("sandbox") for name in names[names.index("isolation") + 1 :])


def test_a_wrong_configuration_is_no_diagnosis() -> None:
    with pytest.raises(ConfigError):
        diagnose("papr")


def test_images_decoded_from_another_copy_are_not_there() -> None:
    tasks = cache_dir() / "tasks"
    (tasks / "cifar10-0123456789abcdef").mkdir(parents=True)
    assert look("embedded")["task"].ok is False
    decoded_folder(open_source("cifar10"), None).mkdir()
    assert look("embedded")["task"].detail == "CIFAR-10: in the cache"


def gpu_check(monkeypatch: pytest.MonkeyPatch, gib: float, *overrides: str, n: int = 1) -> Check:
    monkeypatch.setattr(Gpu, "usable", lambda: Gpu("X", gib, n))
    monkeypatch.setattr(local, "usable_cores", lambda: 16)
    return look(load_config("embedded", list(overrides)))["GPU"]


def test_candidates_train_in_what_vllm_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = "generation.engine=vllm"
    assert gpu_check(monkeypatch, 24, "generation.engine=transformers").ok
    assert gpu_check(monkeypatch, 24, engine).ok is False
    assert gpu_check(monkeypatch, 24, engine, "vllm.gpu_memory_utilization=0.2").ok
    assert gpu_check(monkeypatch, 24, engine, "sandbox.threads=4").ok, "fewer at a time"
    two = gpu_check(monkeypatch, 24, engine, n=2)
    assert (two.ok, two.detail) == (True, "X, 24 GiB, 2 of them"), "half of them on each"


def test_batches_that_go_together_need_the_memory_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    one = ("generation.engine=transformers", "sandbox.workers=1", "finetune.batch_size=4")
    one += ("finetune.grad_accumulation=16", "finetune.gradient_checkpointing=false")
    assert gpu_check(monkeypatch, 12, *one).ok
    assert gpu_check(monkeypatch, 12, *one, "finetune.merge_batches=true").ok is False


def test_a_run_that_does_not_fine_tune_needs_no_memory_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    small = ("generation.engine=transformers", "sandbox.workers=1", "finetune.batch_size=64")
    small += ("finetune.gradient_checkpointing=false",)
    assert gpu_check(monkeypatch, 12, *small).ok is False
    assert gpu_check(monkeypatch, 12, *small, "finetune.enabled=false").ok


@pytest.mark.parametrize(
    ("preset", "overrides"),
    [
        ("smoke", ["task.name=no-such-task"]),
        ("smoke", ["prompt.user=a network, please"]),
        ("smoke", ["llm.warm_start=no-such-adapter"]),
        ("embedded", ["finetune.lora_r=8"]),
        ("smoke", ["llm.warm_start=none", "seeds.source=none"]),
        ("smoke", ["seeds.source=packaged", "seeds.path=nobody"]),
        ("smoke", ["seeds.source=directory", "seeds.path=no-such-folder"]),
        ("smoke", ["seeds.source=run", "seeds.path=."]),
        ("smoke", ["llm.model=./no-such-llm"]),
        ("smoke", ["generation.engine=replay", "generation.replay_from=nowhere"]),
        ("openai", ["openai.base_url=http://127.0.0.1:9/v1", "openai.api_key_env=A_KEY_UNSET"]),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else value,
)
def test_run_raises_what_doctor_shows(preset: str, overrides: list[str]) -> None:
    if preset == "openai":
        overrides = [*overrides, "llm.model=m"]
    config = load_config(preset, overrides)
    (failed,) = (check for check in preflight_rows(config) if check.ok is False)
    with pytest.raises(UsageError) as raised:
        preflight(config)
    assert str(raised.value) == failed.needed
    assert failed in diagnose(config, attack_sandbox=False)


def test_a_run_that_has_begun_needs_neither_its_seeds_nor_its_warm_start() -> None:
    config = load_config(
        "smoke", ["seeds.source=jsonl", "seeds.path=gone", "llm.warm_start=no-such-adapter"]
    )
    preflight(config, begun=True, has_first_adapter=True)
    with pytest.raises(UsageError, match=r"llm\.warm_start"):
        preflight(config, begun=True)
    with pytest.raises(UsageError, match=r"seeds\.path"):
        preflight(config, has_first_adapter=True)


def test_doctor_counts_the_images_of_an_own_task(tmp_path: Path) -> None:
    root = tmp_path / "shells"
    for label, name in enumerate(("cone", "spiral")):
        (root / name).mkdir(parents=True)
        for i in range(4):
            Image.linear_gradient("L").rotate(90 * label).crop((i, 0, 200 + i, 200)).save(
                root / name / f"{i}.png"
            )
    (root / "cone" / "shell.raw").touch()
    settings = [f"task.name={root}", "protocol.validation=holdout:2"]
    check = look(load_config("smoke", settings))["task"]
    assert check.ok
    assert "(cone 4, spiral 4); skipped 1: of another kind (.raw) 1 (cone 1" in check.detail
    (root / "cone").rename(root / "train")
    (root / "spiral").rename(root / "val")
    check = look(load_config("smoke", settings))["task"]
    assert check.ok is False
    assert "no class folders" in check.needed
