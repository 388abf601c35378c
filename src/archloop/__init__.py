"""archloop: a code LLM in a closed loop that designs neural networks and is trained on what worked.

``archloop.evaluate(code, task=...)`` checks and trains one network, ``archloop.run("demo")`` runs
the loop, ``archloop.Run.open(dir)`` reads a run, ``archloop.load_config(name)`` gives a
configuration, ``archloop.stats`` has the intervals of the paper.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Run", "evaluate", "load_config", "run", "stats"]

if TYPE_CHECKING:
    from archloop import stats
    from archloop.api import run
    from archloop.config import load_config
    from archloop.evaluation.alone import evaluate
    from archloop.store.run_dir import Run

_WHERE = {
    "Run": ("archloop.store.run_dir", "Run"),
    "evaluate": ("archloop.evaluation.alone", "evaluate"),
    "load_config": ("archloop.config", "load_config"),
    "run": ("archloop.api", "run"),
    "stats": ("archloop.stats", None),
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that ``import archloop`` stays instant."""
    if name not in _WHERE:
        raise AttributeError(f"module 'archloop' has no attribute {name!r}")
    if name in ("run", "evaluate"):
        from archloop.platforms import refuse_windows

        refuse_windows()
    module, attribute = _WHERE[name]
    loaded = importlib.import_module(module)
    return loaded if attribute is None else getattr(loaded, attribute)


def __dir__() -> list[str]:
    """The public names alone, imported or not: what a notebook completes."""
    return sorted([*__all__, "__doc__", "__version__"])
