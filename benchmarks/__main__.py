"""``python -m benchmarks [NAME...]``: measure and print one Markdown table."""

from __future__ import annotations

import importlib
import sys

from benchmarks.table import HEADING, machine

NAMES = (
    "evaluation",
    "finetuning",
    "generation",
    "lemur",
    "novelty",
    "novelty_scale",
    "streaming",
)


def main(names: list[str]) -> None:
    """Run the named benchmarks, or all of them; rows are printed as they come."""
    unknown = [name for name in names if name not in NAMES]
    if unknown:
        sys.exit(f"no benchmark {unknown[0]!r}; there are {', '.join(NAMES)}")
    print(HEADING, flush=True)
    for name in names or NAMES:
        for row in importlib.import_module(f"benchmarks.{name}").all_rows():
            print(row.markdown(), flush=True)
    print(f"\n{machine()}")


if __name__ == "__main__":
    main(sys.argv[1:])
