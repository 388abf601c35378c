"""A process that cleans networks: a few on a line of JSON come in, what became of them goes out."""

from __future__ import annotations

import gc
import json
import sys

from archloop.code.clean import Style
from archloop.corpus.seeds.prepare import prepare


def main() -> None:
    """Serve lines until there are no more."""
    style: Style = "source" if sys.argv[1] == "source" else "unparse"
    # Trees have no cycles: collecting would only walk them again and again.
    gc.disable()
    for line in sys.stdin:
        rows = [prepare(code, style) for code in json.loads(line)]
        sys.stdout.write(json.dumps([[r.code, r.step, r.reason] for r in rows]) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
