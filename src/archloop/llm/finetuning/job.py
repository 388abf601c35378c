"""The job, the progress and the result of a fine-tune, as plain data."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from archloop.config import FinetuneConfig
from archloop.progress import Progress


@dataclass(frozen=True)
class FinetuneJob:
    """One fine-tune."""

    model_dir: Path
    """The base LLM in Hugging Face layout."""
    corpus: Path
    """JSONL with chat ``messages`` rows."""
    output: Path
    """Folder of the new adapter; must not exist yet."""
    config: FinetuneConfig
    dtype: str
    seed: int
    parent: Path | None = None
    """Adapter to continue from; ``None``: a new one on the base LLM."""
    lineage: dict[str, Any] | None = None
    """Extra entries of the adapter's ``lineage.json``."""

    def to_json(self) -> dict[str, Any]:
        """The job as JSON values."""
        data = asdict(self) | {"config": self.config.model_dump(mode="json")}
        return {k: str(v) if isinstance(v, Path) else v for k, v in data.items()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> FinetuneJob:
        """The job read back."""
        paths = {k: Path(data[k]) for k in ("model_dir", "corpus", "output")}
        parent = Path(data["parent"]) if data["parent"] else None
        config = FinetuneConfig.model_validate(data["config"])
        return cls(**{**data, **paths, "parent": parent, "config": config})


@dataclass(frozen=True)
class FinetuneProgress:
    """At the start, after one optimiser step, or after one measurement of the dev loss."""

    step: int
    total_steps: int
    loss: float | None = None
    """Training loss of the step, in nats per token; ``None``: no step was made."""
    tokens_per_second: float | None = None
    """Tokens of the pairs, without padding."""
    dev_loss: float | None = None

    def snapshot(self) -> Progress:
        """What a person is told."""
        found = [("loss", self.loss), ("dev loss", self.dev_loss)]
        return Progress(
            "fine-tune",
            done=self.step,
            total=self.total_steps,
            unit="steps",
            tokens_per_second=self.tokens_per_second,
            detail=", ".join(f"{name} {v:.3f}" for name, v in found if v is not None),
        )


@dataclass(frozen=True)
class FinetuneResult:
    """A finished fine-tune."""

    adapter: Path
    n_pairs: int
    n_too_long: int
    """Pairs left out because they exceed ``finetune.max_length``."""
    steps: int
    loss: float
    """Mean training loss over the last tenth of the steps, in nats per token."""
    seconds: float
    n_dev: int = 0
    """Pairs held out to measure the dev loss."""
    dev_loss: float | None = None
    """The lowest dev loss measured, in nats per token; ``None`` without dev pairs."""
    best_step: int | None = None
    """The step with the lowest dev loss, whose adapter was kept."""

    def to_json(self) -> dict[str, Any]:
        """The result as JSON values."""
        return asdict(self) | {"adapter": str(self.adapter)}
