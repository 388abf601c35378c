"""What a machine has, and what a configuration will take of it; nothing is loaded to find out.

Memory is estimated by :mod:`archloop.machine.footprint`.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, Self

from archloop.config import EMBEDDED, RunConfig
from archloop.errors import UsageError
from archloop.evaluation.local import worker_count
from archloop.llm.models import read_settings
from archloop.machine.footprint import LLMShape, finetune_bytes, generation_bytes

GIB = 2**30

LIBRARIES_GIB = 1.0
"""What torch and the libraries around it take beside the LLM; CUDA takes about as much again."""

CANDIDATE_GIB = 1.0
"""What a candidate within the paper's 500,000 parameters takes with its share of the libraries."""

_CPU_PARAMS = 1_000_000_000
"""LLMs above this need a GPU: where two CPU cores fine-tune 135 million parameters at 290 tokens a
second, a billion are seven times slower, and one cycle of the paper's size takes two days."""

_EMBEDDED_SHAPE = LLMShape(576, 1536, 30, 9, 3, 49_152, tied=True)


class Gpu(NamedTuple):
    """The GPUs that torch can use."""

    name: str
    gib: float
    n: int = 1
    """How many there are; the first stands for all."""

    @classmethod
    def usable(cls) -> Self | None:
        """``None``: there is none."""
        import torch

        if not torch.cuda.is_available():
            return None
        properties = torch.cuda.get_device_properties(0)
        return cls(properties.name, properties.total_memory / GIB, torch.cuda.device_count())


class Machine(NamedTuple):
    """This machine, with a configuration in mind."""

    config: RunConfig
    run_dir: Path
    shape: LLMShape | None
    """``None``: not known, or the LLM is on a server."""
    gpu: Gpu | None

    @classmethod
    def of(cls, config: RunConfig, run_dir: Path) -> Self:
        """Look once at what several checks ask for."""
        return cls(config, run_dir, _shape(config), Gpu.usable())

    @property
    def remote(self) -> bool:
        """Whether the LLM is on a server."""
        return not self.config.engine_traits.local

    @property
    def needs_gpu(self) -> bool:
        """Whether the configuration makes no sense on a CPU."""
        large = self.shape is not None and self.shape.n_params > _CPU_PARAMS
        return large or self.config.engine_traits.needs_gpu

    @property
    def workers(self) -> int:
        """Candidates evaluated at the same time."""
        return worker_count(self.config.sandbox)

    def finetune_gib(self, shape: LLMShape) -> float:
        """GiB that a fine-tune of an LLM takes, libraries included; 0: there is none."""
        tuned = self.config.finetune
        if not tuned.enabled:
            return 0.0
        if tuned.merge_batches is True:
            together = tuned.batch_size * tuned.grad_accumulation
            tuned = tuned.model_copy(update={"batch_size": together})
        spared = tuned.gradient_checkpointing is not False
        need = finetune_bytes(shape, tuned, self.config.llm.dtype, checkpointing=spared)
        return need / GIB + LIBRARIES_GIB

    def generation_gib(self, shape: LLMShape) -> float:
        """GiB that generation with an LLM takes, libraries included."""
        need = generation_bytes(shape, self.config.generation, self.config.llm.dtype)
        return need / GIB + LIBRARIES_GIB


def llm_settings(config: RunConfig) -> Path | None:
    """The LLM's ``config.json``, in its folder or in the Hugging Face cache, if it is there."""
    folder = Path(config.llm.model).expanduser()
    if folder.is_dir():
        file = folder / "config.json"
        return file if file.is_file() else None
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(
            config.llm.model, "config.json", revision=config.llm.revision
        )
    except HFValidationError:
        return None
    return Path(cached) if isinstance(cached, str) else None


def _shape(config: RunConfig) -> LLMShape | None:
    if not config.engine_traits.local:
        return None
    if config.llm.model == EMBEDDED:
        return _EMBEDDED_SHAPE
    file = llm_settings(config)
    if file is not None:
        try:
            return LLMShape.from_config(read_settings(file))
        except UsageError:
            return None
    return LLMShape.from_name(config.llm.model)
