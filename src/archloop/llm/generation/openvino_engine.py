"""Generation with OpenVINO GenAI on a CPU: continuous batching over a paged, shared-prefix cache.

Up to ``batch_size`` sequences run at a time; when one ends, the next request takes its place, and
the answer is yielded at once. Each sequence has its own random seed. The weights of the adapter
are merged in float32 and rounded by the engine when it computes in bfloat16.
"""

from __future__ import annotations

import gc
import logging
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from archloop.errors import ArchloopError, UsageError
from archloop.files import naming
from archloop.llm.generation.generator import EngineSetup
from archloop.llm.models import attention_window, loading
from archloop.machine.downloads import cache_dir, lock
from archloop.types import Completion, Request

logger = logging.getLogger(__name__)

_MERGED = ".merged-"
_PRECISIONS = {"bfloat16": "bf16", "float32": "f32"}


def _precision(dtype: str) -> str:
    """OpenVINO's name of the type; float32 where the processor has no bfloat16.

    There OpenVINO itself computes in float32, but takes no bfloat16 cache.
    """
    import openvino as ov

    offered = ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if dtype == "bfloat16" and "BF16" not in offered:
        logger.warning("this processor has no bfloat16: generation computes in float32")
        return "f32"
    return _PRECISIONS[dtype]


class OpenVINOGenerator:
    """The ``openvino`` engine."""

    def __init__(self, setup: EngineSetup) -> None:
        """Read the tokenizer; :meth:`use` loads the LLM."""
        import openvino_genai as genai
        from transformers import AutoConfig

        from archloop.llm.generation.language_model import ChatTokenizer

        self._genai = genai
        self.traits, self._tell = setup.traits, setup.tell
        self._config, self._dtype = setup.config.generation, setup.dtype
        self._model_dir = setup.llm_folder()
        self._chat_tokenizer = ChatTokenizer
        self._tokenizer = ChatTokenizer(self._model_dir)
        with loading(self._model_dir):
            self._model_config = AutoConfig.from_pretrained(self._model_dir)
        self._requests_made = 0
        self._base: Path | None = None
        self._pipeline: Any = None

    def use(self, adapter: Path | None) -> None:
        """Convert the base LLM if the cache does not hold it, merge the adapter, load.

        Raises:
            UsageError: The adapter does not fit the LLM or has no effect on it, or layers of the
                LLM attend to fewer tokens than the longest answer has.
        """
        self._free()
        self._require_reach(self._config.max_new_tokens)
        self._tokenizer = self._chat_tokenizer(self._model_dir, adapter)
        self._pipeline = self._load(adapter)

    def _require_reach(self, n_tokens: int) -> None:
        """Refuse sequences longer than some layers attend to: paged attention has no window here.

        Raises:
            UsageError: Naming the engine that knows windows.
        """
        window = attention_window(self._model_config)
        if window is not None and window < n_tokens:
            raise UsageError(
                f"llm.model: layers that attend to {window} tokens only, fewer than the {n_tokens} "
                "of prompt and generation.max_new_tokens; set generation.engine = 'transformers'"
            )

    def _load(self, adapter: Path | None) -> Any:
        import torch

        from archloop.llm.generation.language_model import load_language_model
        from archloop.llm.generation.openvino_conversion import converted_base, write_merged

        if self._base is None:  # found by the weights' SHA-256, which takes time
            self._base = converted_base(self._model_dir)
        base = self._base
        if adapter is None:
            return self._pipeline_from(base)
        model, changed = load_language_model(self._model_dir, adapter, torch.float32)
        with lock("openvino-merged"):
            # While the lock is held none is in use: what is there was left by a kill.
            for left in cache_dir().glob(f"{_MERGED}*"):
                shutil.rmtree(left, ignore_errors=True)
            with tempfile.TemporaryDirectory(dir=cache_dir(), prefix=_MERGED) as name:
                with naming(cache_dir()):
                    write_merged(base, model, changed, Path(name))
                del model
                return self._pipeline_from(Path(name))

    def _pipeline_from(self, folder: Path) -> Any:
        scheduler = self._genai.SchedulerConfig()
        scheduler.cache_size = 0  # grows with what the sequences need
        scheduler.enable_prefix_caching = True
        scheduler.max_num_seqs = self._config.batch_size
        precision = _precision(self._dtype)
        # The default cache type is 8-bit; what is sampled should be the distribution of ``dtype``.
        properties = {"INFERENCE_PRECISION_HINT": precision, "KV_CACHE_PRECISION": precision}
        return self._genai.ContinuousBatchingPipeline(folder, scheduler, "CPU", properties)

    def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
        """Sample; see :class:`~archloop.llm.generation.generator.Generator`."""
        import numpy as np
        import openvino as ov

        from archloop.llm.generation.language_model import by_prompt, require_context

        prompts: list[tuple[Any, list[Request]]] = []
        for messages, same in by_prompt(requests):
            tokens = self._tokenizer.encode(messages)
            require_context(self._model_config, len(tokens), self._config.max_new_tokens)
            self._require_reach(len(tokens) + self._config.max_new_tokens)
            prompts.append((ov.Tensor(np.array([tokens], dtype=np.int64)), same))
        for prompt, _ in prompts:
            self._prefill(prompt)
        added = [
            (request, self._add(prompt, self._settings(request)))
            for prompt, same in prompts
            for request in same
        ]
        running = dict(enumerate(added))
        try:
            while running:
                self._pipeline.step()
                # One token of each sequence that ran; the handles give theirs away only once.
                self._tell(self._pipeline.get_metrics().scheduled_requests)
                for number, (request, handle) in list(running.items()):
                    if self._is_finished(handle):
                        del running[number]
                        yield self._result(request, handle)
        finally:
            self._drop([handle for _, handle in running.values()])

    def _prefill(self, prompt: Any) -> None:
        """Run the prompt once alone, so that all sequences find it in the prefix cache."""
        handle = self._add(prompt, self._limits(max_new_tokens=1))
        while not self._is_finished(handle):
            self._pipeline.step()

    def _add(self, prompt: Any, settings: Any) -> Any:
        self._requests_made += 1
        return self._pipeline.add_request(self._requests_made, prompt, settings)

    def _settings(self, request: Request) -> Any:
        config = self._config
        settings = self._limits(config.max_new_tokens)
        settings.do_sample = request.temperature > 0
        if settings.do_sample:
            settings.temperature = request.temperature
            settings.top_k = config.top_k or sys.maxsize
            settings.top_p = config.top_p
            settings.rng_seed = request.seed
        return settings

    def _limits(self, max_new_tokens: int) -> Any:
        """Greedy settings that end at an end token or after ``max_new_tokens``."""
        settings = self._genai.GenerationConfig()
        settings.max_new_tokens = max_new_tokens
        settings.set_eos_token_id(min(self._tokenizer.end_ids))
        settings.stop_token_ids = set(self._tokenizer.end_ids)
        return settings

    def _is_finished(self, handle: Any) -> bool:
        status = handle.get_status().name
        if status == "IGNORED":
            raise ArchloopError("OpenVINO dropped a sequence: its cache does not fit into memory")
        return bool(status == "FINISHED")

    def _result(self, request: Request, handle: Any) -> Completion:
        (output,) = handle.read_all()
        return self._tokenizer.finish(request, output.generated_ids)

    def _drop(self, handles: Sequence[Any]) -> None:
        for handle in handles:
            handle.cancel()
        while handles and self._pipeline.has_non_finished_requests():
            self._pipeline.step()

    def close(self) -> None:
        """Give the model's memory back."""
        self._free()

    def _free(self) -> None:
        self._pipeline = None
        gc.collect()
