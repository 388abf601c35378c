"""The benchmark of generation, small: that it runs, not what it measures."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks import generation  # noqa: E402


@pytest.mark.llm
@pytest.mark.slow
def test_generation_beside_plain_transformers() -> None:
    (row,) = generation.all_rows(generation.Size(2, 8), ["transformers"], repetitions=1)
    assert row.ratio and row.ratio > 0
    assert "16 tokens each" in row.ours and "16 tokens each" in row.other
