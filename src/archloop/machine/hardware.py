"""What this machine has: CPU cores, memory, GPUs, and whether it computes in bfloat16.

The settings that a configuration leaves to the machine (``auto``) are decided here.
"""

from __future__ import annotations

import math
import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

from archloop.config import RunConfig

_CPUINFO = Path("/proc/cpuinfo")
_GROUPS = Path("/sys/fs/cgroup")
_QUOTA_FILES = (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"))
"""CPU quota: microseconds of processor time, and the period they are for; cgroup v2 and v1."""
_MEMORY_FILES = (
    ("", "memory.max", "memory.current", "inactive_file"),
    ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
"""Memory limit, usage, and the reclaimable file cache within that usage; cgroup v2 and v1."""
_NVIDIA_SECONDS = 20
_AMPERE = 8.0
"""The compute capability from which GPUs have bfloat16 units."""
_BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
"""Flags of /proc/cpuinfo that announce bfloat16 units (x86 and Arm)."""


def usable_cores(groups: Path = _GROUPS) -> int:
    """The number of CPU cores that this process may use, by its affinity and its container's quota.

    Args:
        groups: Mount point of the container's control groups (cgroup v1 or v2).
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
    """Bytes of memory that are available on the machine, or in this process's container.

    Args:
        groups: As in :func:`usable_cores`.
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
    """Name and memory in MiB of each NVIDIA GPU, from its driver; none without a driver."""
    rows = [line.rpartition(",") for line in _nvidia_smi("name,memory.total")]
    return [(name.strip(), int(mib)) for name, _, mib in rows if mib.strip().isdecimal()]


def _nvidia_smi(query: str) -> list[str]:
    """One line of ``nvidia-smi`` for each GPU; empty without a driver."""
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
    """Whether torch is built for CUDA and may use GPUs; torch is not imported to find out."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible not in ("", "-1") and not version("torch").endswith("+cpu")


def _cpuinfo(*keys: str) -> list[str]:
    """The values of some keys of /proc/cpuinfo, one for each core."""
    if not _CPUINFO.is_file():
        return []
    rows = [line.partition(":") for line in _CPUINFO.read_text(errors="replace").splitlines()]
    return [value for key, _, value in rows if key.strip() in keys]


def resolved_precision(precision: str) -> str:
    """The training precision: ``auto`` is replaced by what this machine computes in."""
    if precision != "auto":
        return precision
    return "bf16" if computes_in_bf16() else "fp32"


def resolved_dtype(dtype: str) -> str:
    """The LLM's data type: ``auto`` is replaced by what this machine computes in."""
    if dtype != "auto":
        return dtype
    return "bfloat16" if computes_in_bf16() else "float32"


def on_this_machine(config: RunConfig) -> RunConfig:
    """The configuration with ``llm.dtype = "auto"`` replaced by this machine's data type.

    The configuration of an LLM on a server stays as it is.
    """
    if not config.engine_traits.local:
        return config
    llm = config.llm.model_copy(update={"dtype": resolved_dtype(config.llm.dtype)})
    return config.model_copy(update={"llm": llm})


def processor_name() -> str:
    """The processor's model as Linux names it, else what Python knows of it."""
    names = _cpuinfo("model name")
    if names:
        return " ".join(names[0].split())
    return platform.processor() or platform.machine()
