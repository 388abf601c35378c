"""Where a figure comes from: the machine, the versions and the command of one session of a run.

The machine is described, never named, so a report can be given away. What a configuration leaves to
the machine (``auto``) is decided here too.
"""

from __future__ import annotations

import math
import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from archloop import __version__
from archloop.config import RunConfig

_PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "datasets",
    "openvino-genai",
    "vllm",
    "openai",
    "numpy",
    "scipy",
)
"""The packages that can change a figure."""

_CPUINFO = Path("/proc/cpuinfo")
_GROUPS = Path("/sys/fs/cgroup")
_QUOTA_FILES = (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"))
"""Microseconds of processor time, and in how many; control groups 2 and 1."""
_MEMORY_FILES = (
    ("", "memory.max", "memory.current", "inactive_file"),
    ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
"""Limit, use, and which part of the use is files that would make room; the same."""
_NVIDIA_SECONDS = 20
_AMPERE = 8.0
"""The compute capability from which GPUs have bfloat16 units."""
_BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
"""What processors with such units say in /proc/cpuinfo (x86 and Arm)."""


def session() -> dict[str, Any]:
    """Machine, versions, command and UTC time as JSON values, for the store's meta ``sessions``."""
    return {
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": versions(),
    }


def machine() -> dict[str, Any]:
    """Processor, usable cores, memory in GiB, GPUs, operating system."""
    import psutil

    return {
        "processor": _processor(),
        "cores": usable_cores(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpus": [f"{name} ({mib / 1024:.0f} GiB)" for name, mib in nvidia_gpus()],
        "system": f"{platform.system()} {platform.machine()}",
    }


def versions() -> dict[str, str]:
    """Versions of Python, archloop and the packages that can change a figure."""
    found = {"python": platform.python_version(), "archloop": __version__}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def usable_cores(groups: Path = _GROUPS) -> int:
    """The CPU cores this process may use: by its affinity, and by its container's quota.

    Args:
        groups: Where the control group of a container is mounted, of either version.
    """
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    for files in _QUOTA_FILES:
        try:
            texts = [(groups / file).read_text() for file in files]
            quota, period = (int(number) for text in texts for number in text.split())
        except (OSError, ValueError):  # no container, or "max"
            continue
        if quota > 0:
            return min(there or 1, math.ceil(quota / period))
    return there or 1


def free_memory(groups: Path = _GROUPS) -> int:
    """Bytes that are free on the machine, or in the container that this process is in.

    Args:
        groups: As of :func:`usable_cores`.
    """
    import psutil

    free = int(psutil.virtual_memory().available)
    for folder, limit, usage, cache in _MEMORY_FILES:
        try:
            left = _number(groups / folder / limit) - _number(groups / folder / usage)
            rows = (groups / folder / "memory.stat").read_text().splitlines()
        except (OSError, ValueError):  # no container, or "max"
            continue
        left += sum(int(row.split()[1]) for row in rows if row.startswith(f"{cache} "))
        free = min(free, max(left, 0))
    return free


def _number(file: Path) -> int:
    return int(file.read_text())


def nvidia_gpus() -> list[tuple[str, int]]:
    """Name and memory in MiB of each NVIDIA GPU, as its driver says; none without a driver."""
    rows = [line.rpartition(",") for line in _nvidia_smi("name,memory.total")]
    return [(name.strip(), int(mib)) for name, _, mib in rows if mib.strip().isdecimal()]


def _nvidia_smi(query: str) -> list[str]:
    """A line for each GPU; none without a driver."""
    command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_NVIDIA_SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return []
    return [line for line in done.stdout.splitlines() if line.strip()]


def computes_in_bf16() -> bool:
    """Whether the GPU, or without one the processor, multiplies bfloat16 in hardware."""
    if _torch_sees_gpus() and (capabilities := _nvidia_smi("compute_cap")):
        return all(float(text) >= _AMPERE for text in capabilities)
    return any(not _BF16_FLAGS.isdisjoint(flags.split()) for flags in _cpuinfo("flags", "Features"))


def _torch_sees_gpus() -> bool:
    """Whether torch is built for CUDA and no GPU is hidden from it, without importing it."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible not in ("", "-1") and not version("torch").endswith("+cpu")


def _cpuinfo(*keys: str) -> list[str]:
    """The values of some keys in what Linux says of the processor, one a core."""
    if not _CPUINFO.is_file():
        return []
    rows = [line.partition(":") for line in _CPUINFO.read_text(errors="replace").splitlines()]
    return [value for key, _, value in rows if key.strip() in keys]


def resolved_precision(precision: str) -> str:
    """``auto`` as this machine takes it; anything else as it is."""
    if precision != "auto":
        return precision
    return "bf16" if computes_in_bf16() else "fp32"


def resolved_dtype(dtype: str) -> str:
    """The LLM's ``auto`` as this machine takes it; anything else as it is."""
    if dtype != "auto":
        return dtype
    return "bfloat16" if computes_in_bf16() else "float32"


def on_this_machine(config: RunConfig) -> RunConfig:
    """A configuration with the type that the LLM is computed in here in the place of ``auto``.

    An LLM on a server is not computed here.
    """
    if config.generation.engine == "openai":
        return config
    llm = config.llm.model_copy(update={"dtype": resolved_dtype(config.llm.dtype)})
    return config.model_copy(update={"llm": llm})


def _processor() -> str:
    names = _cpuinfo("model name")
    if names:
        return " ".join(names[0].split())
    return platform.processor() or platform.machine()
