"""Generation with vLLM: continuous batching on a CUDA GPU, the adapter beside the base LLM.

The adapter is not merged: vLLM applies it in its kernels, and :meth:`VLLMGenerator.use_adapter`
changes it while the base stays loaded. In a run the generator lives in a process of one cycle, as
fine-tuning needs the GPU's memory between two: what is kept across cycles are the files (weights in
the page cache, vLLM's compiled kernels under ``~/.cache/vllm``), not the loaded base.

Every request has its own seed, so a completion does not depend on the draws of its neighbours. It
does on rounding: vLLM forms batches from what happens to be there, and kernels of another batch
size may differ in the last bit, so a run need not repeat its texts exactly.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest

from archloop.config import GenerationConfig
from archloop.config.engines import VLLMConfig
from archloop.errors import UsageError
from archloop.llm.generation.generator import GeneratedText
from archloop.llm.generation.language_model import ChatTokenizer
from archloop.types import Message

_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM takes as ``max_lora_rank``."""


class VLLMGenerator:
    """The ``vllm`` engine."""

    def __init__(
        self,
        config: GenerationConfig,
        settings: VLLMConfig,
        model_dir: Path,
        adapter_dir: Path | None,
        dtype: str,
    ) -> None:
        """Load the base LLM and take the adapter.

        Raises:
            UsageError: There is no CUDA GPU, the adapter is none, or ``dtype`` is one that vLLM
                has no kernels for adapters in.
        """
        _require_gpu()
        if dtype == "float32":
            raise UsageError(
                "vLLM applies adapters in bfloat16 only, and llm.dtype is 'float32' here; set it "
                "to 'bfloat16', or generation.engine to 'transformers'"
            )
        self._config = config
        self._tokenizer = ChatTokenizer(model_dir)
        self._rank = _largest_rank(adapter_dir)
        self._llm: Any = LLM(
            model=str(model_dir),
            dtype=dtype,
            enable_lora=True,
            max_loras=1,
            max_lora_rank=self._rank,
            enable_prefix_caching=True,
            max_num_seqs=config.batch_size,
            gpu_memory_utilization=settings.gpu_memory_utilization,
            tensor_parallel_size=settings.tensor_parallel_size,
        )
        self._adapters = self._requests = 0
        self._adapter: LoRARequest | None = None
        self.use_adapter(adapter_dir)

    def use_adapter(self, adapter_dir: Path | None) -> None:
        """Sample with another adapter from now on, or with none; the base LLM stays loaded.

        Raises:
            UsageError: The adapter is none, or its rank is above that of the first one.
        """
        if adapter_dir is None:
            self._adapter = None
            return
        rank = _largest_rank(adapter_dir)
        if rank > self._rank:
            raise UsageError(f"{adapter_dir}: rank above {self._rank}, which vLLM was loaded for")
        self._adapters += 1
        # Name and number are new each time: vLLM takes what it knows by them from its cache.
        self._adapter = LoRARequest(
            f"adapter-{self._adapters}", self._adapters, str(adapter_dir.resolve())
        )

    def generate(
        self, messages: Sequence[Message], requests: Sequence[tuple[int, int]]
    ) -> Iterator[GeneratedText]:
        """Sample; see :class:`~archloop.llm.generation.generator.Generator`."""
        prompt = {"prompt_token_ids": self._tokenizer.encode(messages)}
        engine = self._llm.llm_engine
        running: dict[str, tuple[int, int]] = {}
        for index, seed in requests:
            self._requests += 1
            name = f"{self._requests}"
            engine.add_request(name, prompt, self._sampling(seed), lora_request=self._adapter)
            running[name] = (index, seed)
        try:
            while running:
                for output in engine.step():
                    if output.finished and output.request_id in running:
                        yield self._result(*running.pop(output.request_id), output.outputs[0])
        finally:
            self._drop(list(running))

    def _sampling(self, seed: int) -> SamplingParams:
        config = self._config
        sampled = config.temperature > 0
        return SamplingParams(
            n=1,
            seed=seed,
            temperature=config.temperature,
            top_k=config.top_k if sampled else 0,
            top_p=config.top_p if sampled else 1.0,
            max_tokens=config.max_new_tokens,
            stop_token_ids=sorted(self._tokenizer.end_ids),
            detokenize=False,
        )

    def _result(self, index: int, seed: int, output: Any) -> GeneratedText:
        return self._tokenizer.finish(index, seed, list(output.token_ids))

    def _drop(self, names: list[str]) -> None:
        """Abort what nobody waits for."""
        engine = self._llm.llm_engine
        if names:
            engine.abort_request(names)
        while engine.has_unfinished_requests():
            engine.step()

    def close(self) -> None:
        """Give the memory back, vLLM's own process included."""
        self._llm.llm_engine.engine_core.shutdown()
        self._llm = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _require_gpu() -> None:
    if not torch.cuda.is_available():
        raise UsageError(
            "generation.engine = 'vllm' needs a CUDA GPU that torch can use; without one take "
            "generation.engine = 'openvino'"
        )


def _largest_rank(adapter_dir: Path | None) -> int:
    """The smallest rank vLLM knows that the adapter fits in; 64 without one."""
    if adapter_dir is None:
        return 64
    file = adapter_dir / "adapter_config.json"
    if not file.is_file():
        raise UsageError(f"{adapter_dir}: no adapter_config.json; expected a PEFT adapter folder")
    found = json.loads(file.read_text("utf-8"))
    rank = max([found["r"], *found.get("rank_pattern", {}).values()])
    for known in _RANKS:
        if known >= rank:
            return known
    raise UsageError(f"{adapter_dir}: rank {rank}; vLLM takes at most {_RANKS[-1]}")
