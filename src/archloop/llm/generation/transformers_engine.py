"""Generation with transformers: the reference engine, on a CUDA GPU or the CPU.

The sampling loop is our own because ``generate`` has one global random state and a result would
depend on its neighbours' draws: here every sequence has draws of its own, made from its seed
before it begins. The prompt is run once, ``batch_size`` sequences advance in step from its cache,
and a finished one leaves the batch. The batch's make-up still enters through rounding: matrix
products of another size may differ in the last bit, so a run repeats its texts exactly only with
the same requests and ``batch_size``. Requests of another prompt are a batch of their own.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import DynamicCache

from archloop.llm.generation.generator import EngineSetup
from archloop.llm.generation.kv_cache import RowCache
from archloop.llm.generation.language_model import (
    ChatTokenizer,
    by_prompt,
    load_language_model,
    require_context,
)
from archloop.llm.generation.sampling import choose_tokens, uniform_draws
from archloop.llm.models import attention_window
from archloop.types import Completion, Message, Request

logger = logging.getLogger(__name__)

_DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass
class _Sequence:
    """A request being answered."""

    request: Request
    draws: torch.Tensor
    tokens: list[int] = field(default_factory=list)


class TransformersGenerator:
    """The ``transformers`` engine."""

    def __init__(self, setup: EngineSetup) -> None:
        """Read the tokenizer; :meth:`use` loads the LLM."""
        self.traits, self._tell = setup.traits, setup.tell
        self._config, self._dtype = setup.config.generation, _DTYPES[setup.dtype]
        self._model_dir = setup.llm_folder()
        self._tokenizer = ChatTokenizer(self._model_dir)
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        # cuDNN's attention plans anew for every length of the cache: most of a step's time.
        torch.backends.cuda.enable_cudnn_sdp(False)
        self._model: Any = None

    def use(self, adapter: Path | None) -> None:
        """Load the LLM with the adapter merged in.

        The weights are read anew: an adapter taken out of merged weights would leave its rounding.

        Raises:
            UsageError: The adapter does not fit the LLM or has no effect on it.
        """
        self._free()
        self._tokenizer = ChatTokenizer(self._model_dir, adapter)
        model, _ = load_language_model(self._model_dir, adapter, self._dtype)
        self._model = model.to(self._device)

    @torch.inference_mode()
    def _forward(self, tokens: torch.Tensor, cache: Any) -> torch.Tensor:
        """Logits (rows, vocabulary) after ``tokens`` (rows, new); the cache grows by them."""
        start = cache.get_seq_length()
        end = start + tokens.shape[1]
        positions = torch.arange(start, end, device=self._device)
        out = self._model(
            input_ids=tokens.to(self._device),
            attention_mask=self._attention_mask(tokens, end),
            position_ids=positions.expand(tokens.shape[0], -1),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits: torch.Tensor = out.logits[:, -1]
        return logits

    def _attention_mask(self, tokens: torch.Tensor, length: int) -> torch.Tensor | None:
        """``None``, or for single tokens on a CPU an explicit mask that hides nothing.

        Without a mask transformers leaves grouped queries to PyTorch, whose CPU kernel takes six
        times as long in bfloat16 as the packed queries that a mask makes transformers use.
        """
        if self._device.type != "cpu" or tokens.shape[1] != 1:
            return None
        window = attention_window(self._model.config)
        if window is not None and window < length:
            return None  # each layer makes its own
        return torch.ones(tokens.shape[0], 1, 1, length, dtype=torch.bool)

    def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
        """Sample; see :class:`~archloop.llm.generation.generator.Generator`."""
        for messages, same in by_prompt(requests):
            yield from self._answer(messages, same)

    def _answer(
        self, messages: Sequence[Message], requests: Sequence[Request]
    ) -> Iterator[Completion]:
        """Sample answers to one prompt."""
        prompt = self._tokenizer.encode(messages)
        require_context(self._model.config, len(prompt), self._config.max_new_tokens)
        cache = DynamicCache()  # of whole sequences; made of a configuration it drops old tokens
        logits = self._forward(torch.tensor([prompt]), cache)
        size = self._config.batch_size
        for start in range(0, len(requests), size):
            yield from self._batch(cache, logits, requests[start : start + size])

    def _batch(
        self, prompt: DynamicCache, logits: torch.Tensor, requests: Sequence[Request]
    ) -> Iterator[Completion]:
        limit = self._config.max_new_tokens
        rows = [_Sequence(r, uniform_draws(r.seed, limit)) for r in requests]
        with torch.inference_mode():
            cache = RowCache(prompt, len(rows), prompt.get_seq_length() + limit)
        logits = logits.expand(len(rows), -1)
        for step in range(limit):
            chosen = choose_tokens(
                logits,
                torch.stack([row.draws[step] for row in rows]),
                temperature=[row.request.temperature for row in rows],
                top_k=self._config.top_k,
                top_p=self._config.top_p,
            )
            for row, token in zip(rows, chosen.tolist(), strict=True):
                row.tokens.append(token)
            self._tell(len(rows))
            going = [k for k, row in enumerate(rows) if not self._is_finished(row)]
            for row in rows:
                if self._is_finished(row):
                    yield self._tokenizer.finish(row.request, row.tokens)
            if not going:
                return
            if len(going) < len(rows):
                rows = [rows[k] for k in going]
                chosen = chosen[going]
                with torch.inference_mode():
                    cache.keep(going)
            logits = self._forward(chosen[:, None], cache)

    def _is_finished(self, row: _Sequence) -> bool:
        last = row.tokens[-1] in self._tokenizer.end_ids
        return last or len(row.tokens) == self._config.max_new_tokens

    def close(self) -> None:
        """Give the model's memory back."""
        self._free()

    def _free(self) -> None:
        self._model = None
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
