"""A record of the machine, the package versions and the command that a figure comes from.

A run stores one for each of its starts. The machine is described but never named, so that a report
can be published.
"""

from __future__ import annotations

import platform
import shlex
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from archloop import __version__
from archloop.machine.hardware import nvidia_gpus, processor_name, usable_cores

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
"""Packages whose version can change a result."""


def session() -> dict[str, Any]:
    """Machine, versions, command and UTC time as JSON values, for the store's meta ``sessions``."""
    return {
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": versions(),
    }


def machine() -> dict[str, Any]:
    """Processor, usable cores, memory in GiB, GPUs, operating system; not the host's name."""
    import psutil

    return {
        "processor": processor_name(),
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
