"""Convert an LLM in Hugging Face layout to OpenVINO, and put merged weights into it.

The base LLM is traced once and kept in the cache; a cycle only exchanges the weights its adapter
changed. What OpenVINO GenAI's paged attention looks for in the graph is made here: one
``ReadValue`` with an initial value per key and value cache, reordered by ``beam_idx`` and
concatenated with the new states. After the trace the logits are compared with the original's, so a
part that was read differently (a RoPE base, say) is found at once.
"""

from __future__ import annotations

import hashlib
import logging
import tempfile
import warnings
from collections.abc import Collection
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import torch
from openvino import opset13 as ops
from openvino._offline_transformations import apply_make_stateful_transformation

from archloop.errors import ArchloopError
from archloop.files import naming
from archloop.llm.models import attention_window, context_length
from archloop.machine.downloads import cache_dir, lock, sha256_of

logger = logging.getLogger(__name__)

IR_NAME = "openvino_model.xml"
_LAYOUT = 1
"""Raised when the converted graph changes, so that older cache entries are not used."""
_MAX_LOGIT_ERROR = 0.01
"""Largest accepted difference of float32 logits; conversions that are right stay below 1e-3."""


def converted_base(model_dir: Path) -> Path:
    """The cached folder of the converted base LLM, converted on first use.

    The cache key covers the model's files and the versions of OpenVINO and transformers.
    """
    from archloop.llm.generation.language_model import load_language_model

    target = cache_dir() / "openvino" / f"{model_dir.name}-{_digest(model_dir)}"
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with lock(f"openvino-{target.name}"):
        if not target.is_dir():
            logger.info("converting %s to OpenVINO once", model_dir.name)
            with tempfile.TemporaryDirectory(dir=target.parent, prefix=".convert-") as name:
                folder = Path(name) / "ir"
                folder.mkdir()
                model, _ = load_language_model(model_dir, None, torch.float32)
                with naming(target.parent):
                    convert(model, folder)
                folder.replace(target)
    return target


def write_merged(base: Path, model: Any, changed: Collection[str], folder: Path) -> None:
    """Write the converted base with the named weights replaced by those of ``model``.

    Where the graph does not hold one of them as it is, the merged LLM is converted instead.

    Args:
        base: A folder from :func:`converted_base`.
        model: The same LLM with an adapter merged in, float32.
        changed: Names of the weights that differ from the base, or are only in one of them.
        folder: An existing folder for the result.

    Raises:
        ArchloopError: The result does not compute what ``model`` does.
    """
    graph = ov.Core().read_model(base / IR_NAME)
    constants = _weight_constants(graph)
    weights = dict(model.named_parameters())
    for name in sorted(changed):
        old, new = constants.get(name), weights.get(name)
        if old is None or new is None or tuple(old.output(0).shape) != new.shape:
            logger.info("the adapter changes %s: the merged LLM is converted anew", name)
            convert(model, folder)
            return
        fresh = ops.constant(new.detach().numpy(), dtype=np.float32, name=old.get_friendly_name())
        for consumer in old.output(0).get_target_inputs():
            consumer.replace_source_output(fresh.output(0))
    _check_logits(graph, model)
    ov.save_model(graph, folder / IR_NAME, compress_to_fp16=False)


def _digest(model_dir: Path) -> str:
    key = hashlib.sha256(f"{_LAYOUT} {version('openvino')} {version('transformers')}".encode())
    for path in sorted([model_dir / "config.json", *model_dir.glob("*.safetensors")]):
        key.update(f" {path.name} {sha256_of(path)}".encode())
    return key.hexdigest()[:12]


class _Step(torch.nn.Module):
    """One forward pass with an explicit cache: what is traced."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        position_ids: torch.Tensor,
        past: list[torch.Tensor],
    ) -> tuple[torch.Tensor, ...]:
        from transformers import DynamicCache

        cache = DynamicCache(config=self.model.config)
        for layer, keys, values in zip(cache.layers, past[::2], past[1::2], strict=True):
            layer.lazy_initialization(keys, values)
            layer.keys, layer.values = keys, values
        columns = torch.arange(attention_mask.shape[1])[None, None, None, :]
        mask = (columns <= position_ids[:, None, :, None]) & (attention_mask[:, None, None, :] > 0)
        out = self.model(
            input_ids=input_ids,
            attention_mask=mask,
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=True,
        )
        states = [x for layer in out.past_key_values.layers for x in (layer.keys, layer.values)]
        return (out.logits, *states)


def _cache_shape(config: Any) -> tuple[int, int, int]:
    """(layers, key-value heads, head dimension)."""
    heads = config.num_attention_heads
    dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    return config.num_hidden_layers, getattr(config, "num_key_value_heads", None) or heads, dim


def convert(model: Any, folder: Path) -> None:
    """Convert a float32 LLM into an existing folder.

    Raises:
        ArchloopError: The result does not compute what ``model`` does.
    """
    layers, heads, dim = _cache_shape(model.config)
    graph = _trace(model, layers, heads, dim)
    names = [f"{i}.{part}" for i in range(layers) for part in ("key", "value")]
    _name_ports(graph, names, heads, dim)
    _make_stateful(graph, names, heads, dim)
    _check_logits(graph, model)
    ov.save_model(graph, folder / IR_NAME, compress_to_fp16=False)


def _trace(model: Any, layers: int, heads: int, dim: int) -> Any:
    """Trace two rows of four tokens after three cached ones: no size is 1 or equal by chance."""
    rows, cached, fresh = 2, 3, 4
    example = {
        "input_ids": torch.arange(rows * fresh).reshape(rows, fresh),
        "attention_mask": torch.ones(rows, cached + fresh, dtype=torch.long),
        "position_ids": torch.arange(cached, cached + fresh).repeat(rows, 1),
        "past": [torch.zeros(rows, heads, cached, dim) for _ in range(2 * layers)],
    }
    with torch.no_grad(), warnings.catch_warnings():
        # Branches on sizes are frozen by the trace, as meant; the logits are compared below.
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # type: ignore[attr-defined]
        return ov.convert_model(_Step(model), example_input=example)


def _name_ports(graph: Any, names: list[str], heads: int, dim: int) -> None:
    inputs = [
        "input_ids",
        "attention_mask",
        "position_ids",
        *(f"past_key_values.{n}" for n in names),
    ]
    for port, name in zip(graph.inputs, inputs, strict=True):
        port.set_names({name})
        port.node.set_friendly_name(name)
        if name.startswith("past_"):
            port.node.set_partial_shape(ov.PartialShape([-1, heads, -1, dim]))
    outputs = ["logits", *(f"present.{n}" for n in names)]
    for port, name in zip(graph.outputs, outputs, strict=True):
        port.set_names({name})
    graph.validate_nodes_and_infer_types()


def _make_stateful(graph: Any, names: list[str], heads: int, dim: int) -> None:
    beam = ops.parameter([-1], ov.Type.i32, name="beam_idx")
    beam.output(0).set_names({"beam_idx"})
    graph.add_parameters([beam])
    for name in names:
        past = graph.input(f"past_key_values.{name}")
        consumers = past.get_target_inputs()
        reordered = ops.gather(past, beam, ops.constant(0))
        for consumer in consumers:
            consumer.replace_source_output(reordered.output(0))
    graph.validate_nodes_and_infer_types()
    states = {f"past_key_values.{name}": f"present.{name}" for name in names}
    apply_make_stateful_transformation(graph, states)
    rows = ops.gather(
        ops.shape_of(graph.input("input_ids"), output_type="i64"),
        ops.constant([0]),
        ops.constant(0),
    )
    rest = ops.constant(np.array([heads, 0, dim], dtype=np.int64))
    empty = ops.broadcast(ops.constant(0.0, dtype=ov.Type.f32), ops.concat([rows, rest], 0))
    for node in graph.get_ordered_ops():
        if node.get_type_name() == "ReadValue":
            node.set_arguments([empty.output(0)])
    graph.validate_nodes_and_infer_types()


def _weight_constants(graph: Any) -> dict[str, Any]:
    """Weight constants of the graph by the name of the LLM's parameter."""
    prefix = "self.model."
    return {
        node.get_friendly_name().removeprefix(prefix): node
        for node in graph.get_ordered_ops()
        if node.get_type_name() == "Constant" and node.get_friendly_name().startswith(prefix)
    }


def _check_logits(graph: Any, model: Any) -> None:
    """Compare float32 logits with the original's on 64 tokens spread over the vocabulary.

    Fewer, where some layers attend to fewer or the LLM has fewer positions.

    Raises:
        ArchloopError: They differ, so the conversion is wrong.
    """
    n = min(64, attention_window(model.config) or 64, context_length(model.config.to_dict()) or 64)
    ids = torch.arange(n)[None] * 997 % model.config.vocab_size
    with torch.no_grad():
        expected = model(input_ids=ids).logits[0].numpy()
    compiled = ov.Core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    request = compiled.create_infer_request()
    request.infer(
        {
            "input_ids": ids.numpy(),
            "attention_mask": np.ones((1, n), dtype=np.int64),
            "position_ids": np.arange(n, dtype=np.int64)[None],
            "beam_idx": np.zeros(1, dtype=np.int32),
        }
    )
    error = float(np.abs(request.get_tensor("logits").data[0] - expected).max())
    if not error < _MAX_LOGIT_ERROR:
        raise ArchloopError(
            f"OpenVINO conversion is wrong: logits differ by {error:.3g} "
            f"(at most {_MAX_LOGIT_ERROR}); use generation.engine = 'transformers'"
        )
