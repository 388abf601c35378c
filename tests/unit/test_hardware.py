"""What a machine decides of a run, and what happens to the run on another machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from archloop.config import RunConfig, load_config
from archloop.errors import ConfigError
from archloop.loop.context import RunContext, open_context
from archloop.machine import hardware
from archloop.progress import Silent
from made_runs import add_texts


@pytest.fixture
def bf16(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine that multiplies bfloat16 in hardware; ``without`` makes it another one."""
    monkeypatch.setattr(hardware, "computes_in_bf16", lambda: True)
    return monkeypatch


def without(machine: pytest.MonkeyPatch) -> None:
    machine.setattr(hardware, "computes_in_bf16", lambda: False)


def opened(config: RunConfig | None, root: Path) -> RunContext:
    return open_context(config, root, Silent())


@pytest.mark.parametrize(
    ("flags", "there"),
    [("fpu avx2", False), ("fpu avx512f avx512_bf16", True), ("amx_bf16", True)],
)
def test_bf16_is_what_the_processor_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, flags: str, there: bool
) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text(f"model name\t: X\nflags\t\t: {flags}\n")
    monkeypatch.setattr(hardware, "_CPUINFO", file)
    monkeypatch.setattr(hardware, "_nvidia_smi", lambda _query: [])
    assert hardware.computes_in_bf16() is there
    assert hardware.resolved_dtype("auto") == ("bfloat16" if there else "float32")
    assert hardware.resolved_precision("auto") == ("bf16" if there else "fp32")


@pytest.mark.parametrize(
    ("torch", "visible", "there"),
    [
        ("2.13.0", None, True),
        ("2.13.0", "", False),
        ("2.13.0", "-1", False),
        ("2.13.0+cpu", "0", False),
    ],
)
def test_a_gpu_that_torch_does_not_see_does_not_count(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, torch: str, visible: str | None, there: bool
) -> None:
    monkeypatch.setattr(hardware, "_CPUINFO", tmp_path / "none")
    monkeypatch.setattr(hardware, "_nvidia_smi", lambda _query: ["9.0"])
    monkeypatch.setattr(hardware, "version", lambda _name: torch)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert hardware.computes_in_bf16() is there


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_chosen_type_is_kept(bf16: pytest.MonkeyPatch, dtype: str) -> None:
    for _ in range(2):
        assert hardware.resolved_dtype(dtype) == dtype
        without(bf16)


def begin(context: RunContext) -> None:
    """What a run does first; its configuration may not change after that."""
    context.begin()
    add_texts(context.store, 1, ["text"])
    context.store.close()


def test_a_run_keeps_the_type_it_began_with(bf16: pytest.MonkeyPatch, tmp_path: Path) -> None:
    begin(opened(load_config("smoke"), tmp_path))
    assert json.loads((tmp_path / "config.json").read_text())["llm"]["dtype"] == "bfloat16"
    without(bf16)
    with pytest.raises(ConfigError, match=r"changed: llm\.dtype: 'bfloat16' -> 'float32'"):
        opened(load_config("smoke"), tmp_path)
    for config in (None, load_config("smoke", ["llm.dtype=bfloat16"])):
        context = opened(config, tmp_path)
        assert context.config.llm.dtype == "bfloat16"
        context.store.close()


def test_a_run_with_its_llm_on_a_server_goes_on_anywhere(
    bf16: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for _ in range(2):
        context = opened(load_config("openai"), tmp_path)
        assert context.config.llm.dtype == "auto"
        context.store.close()
        without(bf16)


def test_another_machines_precision_is_named(bf16: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = load_config("smoke", ["llm.dtype=float32", "protocol.precision=auto"])
    begin(opened(config, tmp_path))
    without(bf16)
    context = opened(config, tmp_path)
    with pytest.raises(ConfigError, match=r"began: protocol \(protocol.precision = 'auto' is 'fp"):
        context.pin()
    context.store.close()


def test_a_containers_memory_is_its_own(tmp_path: Path) -> None:
    machine = hardware.free_memory(tmp_path)
    assert machine > 100 << 20
    for folder, limit, usage, cache in hardware._MEMORY_FILES:
        group = tmp_path / limit / folder
        group.mkdir(parents=True)
        (group / usage).write_text(f"{90 << 20}\n")
        (group / "memory.stat").write_text(f"anon 7\n{cache} {20 << 20}\nfile 9\n")
        (group / limit).write_text(f"{100 << 20}\n")
        assert hardware.free_memory(tmp_path / limit) == 30 << 20
        (group / limit).write_text("max\n")
        assert hardware.free_memory(tmp_path / limit) > 100 << 20


def test_a_containers_cores_are_its_own(tmp_path: Path) -> None:
    machine = hardware.usable_cores(tmp_path)
    for version, files in enumerate(hardware._QUOTA_FILES):
        groups = tmp_path / str(version)
        for quota, cores in [
            ("50000", 1),
            ("99000000", machine),
            ("max", machine),
            ("-1", machine),
        ]:
            texts = [f"{quota} 100000"] if len(files) == 1 else [quota, "100000"]
            for file, text in zip(files, texts, strict=True):
                (groups / file).parent.mkdir(parents=True, exist_ok=True)
                (groups / file).write_text(f"{text}\n")
            assert hardware.usable_cores(groups) == cores
