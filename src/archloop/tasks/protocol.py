"""The protocol hash: two accuracies are comparable only if it is equal."""

from __future__ import annotations

from archloop.config import RunConfig, config_digest
from archloop.machine.hardware import resolved_precision
from archloop.types import TaskData


def protocol_digest(config: RunConfig, task: TaskData) -> str:
    """The protocol hash in every row: protocol, task data and what else can change an accuracy."""
    fixed = {
        "protocol": config.protocol.model_dump(mode="json"),
        "task": task.info.digest,
        "threads": config.sandbox.threads,
        "precision": resolved_precision(config.protocol.precision),
    }
    return config_digest(fixed)
