"""What the source of a network may use; read by the policy and by the removal of noise."""

from __future__ import annotations

ALLOWED_IMPORTS = (
    "torch",
    "numpy",
    "math",
    "typing",
    "collections",
    "functools",
    "itertools",
    "dataclasses",
    "random",
    "copy",
    "abc",
    "enum",
    "operator",
    "numbers",
    "warnings",
    "types",
    "re",
    "string",
    "__future__",
)
FORBIDDEN_MODULES = (
    "torch.hub",
    "torch.utils.model_zoo",
    "torch.distributed",
    "torch.multiprocessing",
)
"""Parts of allowed modules that load files or start processes."""


def is_allowed(name: str) -> bool:
    """Whether a module, or a name imported from one, may be imported (``torch.nn.Linear``)."""
    return name.partition(".")[0] in ALLOWED_IMPORTS and not name.startswith(FORBIDDEN_MODULES)
