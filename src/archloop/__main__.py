"""``python -m archloop``."""

from __future__ import annotations

from archloop.cli import main

main()
