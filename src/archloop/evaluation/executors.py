"""Where candidates are evaluated: a Protocol, one file per implementation."""

from __future__ import annotations

from archloop.config import SandboxConfig
from archloop.evaluation.executor import Executor, Finished
from archloop.evaluation.local import LocalExecutor
from archloop.sandbox import Sandbox

__all__ = ["Executor", "Finished", "build_executor"]


def build_executor(sandbox: Sandbox, config: SandboxConfig) -> Executor:
    """The executor for this machine."""
    return LocalExecutor(sandbox, config)
