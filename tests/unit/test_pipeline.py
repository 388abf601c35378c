from __future__ import annotations

import pytest

from archloop.config import load_config
from archloop.loop.pipeline import batches_of


@pytest.mark.parametrize(
    ("engine", "target", "sizes"),
    [
        ("transformers", "none", [4, 4, 4, 4, 4, 4, 4, 2]),
        ("openvino", "none", [16, 14]),  # the last two would be written alone otherwise
        ("openvino", "5", [4, 4, 4, 4, 4, 4, 4, 2]),
        ("openai", "none", [30]),
        ("openai", "5", [4, 4, 4, 4, 4, 4, 4, 2]),
    ],
)
def test_batches_by_engine_and_end_of_the_cycle(engine: str, target: str, sizes: list[int]) -> None:
    config = load_config(
        "openai" if engine == "openai" else "smoke",
        [
            f"generation.engine={engine}",
            f"loop.valid_target={target}",
            "loop.completions=30",
            "generation.batch_size=4",
        ],
    )
    batches = batches_of(config)
    assert [len(batch) for batch in batches] == sizes
    assert [i for batch in batches for i in batch] == list(range(30))
