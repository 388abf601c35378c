"""Generation with vLLM: continuous batching on a CUDA GPU, the adapter beside the base LLM.

The adapter is not merged: vLLM applies it in its kernels, and :meth:`VLLMGenerator.use` changes it
while the base stays loaded. Where fine-tuning needs the GPU's memory the process ends in between:
then what is kept across cycles are the files (weights in the page cache, vLLM's compiled kernels
under ``~/.cache/vllm``), not the loaded base.

Every request has its own seed, so a completion does not depend on the draws of its neighbours. It
does on rounding: vLLM forms batches from what happens to be there, and kernels of another batch
size may differ in the last bit, so a run need not repeat its texts exactly.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest

from archloop.errors import UsageError
from archloop.llm.adapter_files import require_plain_lora
from archloop.llm.generation.generator import EngineSetup
from archloop.llm.generation.language_model import ChatTokenizer, by_prompt
from archloop.llm.models import read_settings
from archloop.types import Completion, Request

_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM takes as ``max_lora_rank``."""


class VLLMGenerator:
    """The ``vllm`` engine."""

    def __init__(self, setup: EngineSetup) -> None:
        """Read the tokenizer; :meth:`use` loads the base LLM.

        Raises:
            UsageError: There is no CUDA GPU, or ``llm.dtype`` is one that vLLM has no kernels for
                adapters in.
        """
        _require_gpu()
        if setup.dtype == "float32":
            raise UsageError(
                "vLLM applies adapters in bfloat16 only, and llm.dtype is 'float32' here; set it "
                "to 'bfloat16', or generation.engine to 'transformers'"
            )
        self.traits, self._tell = setup.traits, setup.tell
        self._config, self._settings = setup.config.generation, setup.config.vllm
        self._dtype, self._model_dir = setup.dtype, setup.llm_folder()
        self._tokenizer = ChatTokenizer(self._model_dir)
        self._llm: Any = None
        self._rank = self._adapters = self._requests = 0
        self._adapter: LoRARequest | None = None

    def use(self, adapter: Path | None) -> None:
        """Sample with another adapter from now on, or with none; the base LLM stays loaded.

        It is loaded anew for an adapter of a rank above that of the first one.

        Raises:
            UsageError: The adapter is none, vLLM would not apply all of it, or its rank is above
                what vLLM takes.
        """
        if adapter is not None:
            require_plain_lora(adapter)
        self._tokenizer = ChatTokenizer(self._model_dir, adapter)
        rank = _largest_rank(adapter)
        if self._llm is None or (adapter is not None and rank > self._rank):
            self.close()
            self._load(rank)
        if adapter is None:
            self._adapter = None
            return
        self._adapters += 1
        # Name and number are new each time: vLLM takes what it knows by them from its cache.
        self._adapter = LoRARequest(
            f"adapter-{self._adapters}", self._adapters, str(adapter.resolve())
        )

    def _load(self, rank: int) -> None:
        self._rank = rank
        self._llm = LLM(
            model=str(self._model_dir),
            dtype=self._dtype,
            enable_lora=True,
            max_loras=1,
            max_lora_rank=rank,
            enable_prefix_caching=True,
            max_num_seqs=self._config.batch_size,
            gpu_memory_utilization=self._settings.gpu_memory_utilization,
            tensor_parallel_size=self._settings.tensor_parallel_size,
        )

    def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
        """Sample; see :class:`~archloop.llm.generation.generator.Generator`."""
        engine = self._llm.llm_engine
        running: dict[str, Request] = {}
        for messages, same in by_prompt(requests):
            prompt = {"prompt_token_ids": self._tokenizer.encode(messages)}
            for request in same:
                self._requests += 1
                name = f"{self._requests}"
                engine.add_request(
                    name, prompt, self._sampling(request), lora_request=self._adapter
                )
                running[name] = request
        try:
            while running:
                outputs = engine.step()
                self._tell(len(outputs))  # one token each
                for output in outputs:
                    if output.finished and output.request_id in running:
                        request, tokens = (
                            running.pop(output.request_id),
                            output.outputs[0].token_ids,
                        )
                        yield self._tokenizer.finish(request, list(tokens))
        finally:
            self._drop(list(running))

    def _sampling(self, request: Request) -> SamplingParams:
        config = self._config
        sampled = request.temperature > 0
        return SamplingParams(
            n=1,
            seed=request.seed,
            temperature=request.temperature,
            top_k=config.top_k if sampled else 0,
            top_p=config.top_p if sampled else 1.0,
            max_tokens=config.max_new_tokens,
            stop_token_ids=sorted(self._tokenizer.end_ids),
            detokenize=False,
        )

    def _drop(self, names: list[str]) -> None:
        """Abort what nobody waits for."""
        engine = self._llm.llm_engine
        if names:
            engine.abort_request(names)
        while engine.has_unfinished_requests():
            engine.step()

    def close(self) -> None:
        """Give the memory back, vLLM's own process included."""
        if self._llm is not None:
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
    rank = read_settings(adapter_dir / "adapter_config.json")["r"]
    for known in _RANKS:
        if known >= rank:
            return known
    raise UsageError(f"{adapter_dir}: rank {rank}; vLLM takes at most {_RANKS[-1]}")
