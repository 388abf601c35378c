"""What an adapter's files say: its parts, whether it fits an LLM, whether a fine-tune goes on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from archloop.config import FinetuneConfig
from archloop.errors import UsageError
from archloop.llm.models import check_adapter, read_settings

ADAPTER_WEIGHTS = "adapter_model.safetensors"
_BEYOND_LORA = (
    *("modules_to_save", "trainable_token_indices", "use_dora", "lora_bias", "rank_pattern"),
    *("alpha_pattern", "layer_replication", "alora_invocation_tokens", "target_parameters"),
    *("use_qalora", "use_bdlora", "arrow_config", "kasa_config", "monteclora_config"),
    "velora_config",
)
"""Settings of PEFT's LoRA by which an adapter is more than two matrices of one rank and scale."""
_TRAINED_ON = ("use_dora", "rank_pattern", "alpha_pattern")
"""Those of them that a fine-tune goes on with."""
NO_WARM_START = 'set llm.warm_start = "none"'


def beyond_lora(folder: Path) -> dict[str, str]:
    """What an adapter has beside the two LoRA matrices of each layer, by the setting of PEFT.

    Raises:
        UsageError: Its files cannot be read.
    """
    settings = read_settings(folder / "adapter_config.json")
    kind = str(settings.get("peft_type"))
    found = {} if kind == "LORA" else {"peft_type": f"peft_type {kind}"}
    for key in _BEYOND_LORA:
        if settings.get(key):
            found[key] = f"{key} {json.dumps(settings[key])}"
    if settings.get("bias", "none") != "none":
        found["bias"] = f"bias {settings['bias']!r}"
    if not found.keys() & {"peft_type", "modules_to_save", "bias", "trainable_token_indices"}:
        whole = [name for name, _ in _shapes(folder / ADAPTER_WEIGHTS) if "lora_" not in name]
        if whole:
            found["modules_to_save"] = f"whole weights such as {whole[0]}"
    return found


def adapter_mismatch(folder: Path, config: FinetuneConfig) -> str | None:
    """Why a fine-tune with these settings cannot go on from an adapter, if it cannot."""
    extra = [part for key, part in beyond_lora(folder).items() if key not in _TRAINED_ON]
    if extra:
        return (
            f"finetune.init: going on from {folder.name} would train more than LoRA matrices "
            f"({', '.join(extra)}), which archloop does not; set it to 'base', or name a plain "
            "LoRA adapter"
        )
    found = read_settings(folder / "adapter_config.json")
    layers = None if config.layers is None else list(range(config.layers))
    targets = found.get("target_modules") or ()
    there = (
        found.get("r"),
        found.get("lora_alpha"),
        targets if isinstance(targets, str) else sorted(targets),
        found.get("layers_to_transform"),
    )
    if there == (config.lora_r, config.lora_alpha, sorted(config.target_modules), layers):
        return None
    r, alpha, targets, adapted = there
    return (
        f"finetune.lora_r, lora_alpha, target_modules, layers: {folder.name} has r {r}, alpha "
        f"{alpha}, {targets}, layers {adapted or 'all'}; going on from it needs the same"
    )


def require_plain_lora(folder: Path) -> None:
    """Refuse an adapter that vLLM, which takes its LoRA matrices alone, would apply in part.

    Raises:
        UsageError: Naming the part, and the engines that apply it.
    """
    check_adapter(folder)
    if extra := list(beyond_lora(folder).values()):
        raise UsageError(
            f"{folder}: vLLM would leave out a part of this adapter ({', '.join(extra)}); set "
            "generation.engine = 'transformers' or 'openvino'"
        )


def does_not_fit(adapter: Path, reason: str) -> str:
    """The message for an adapter of another LLM."""
    return (
        f"{adapter}: adapter does not fit the LLM: {reason}; name one that was made for llm.model, "
        f"or {NO_WARM_START}"
    )


def check_warm_start(adapter: Path, model_dir: Path) -> None:
    """Refuse an adapter that is of another LLM by the shapes in their files; loads neither.

    Layers are compared that both files name alike. What is left is found when the LLM is loaded.

    Raises:
        UsageError: Naming the layer, and the key to set.
    """
    weights = {
        name.removesuffix(".weight"): shape
        for file in sorted(model_dir.glob("*.safetensors"))
        for name, shape in _shapes(file)
    }
    kinds = {name.rpartition(".")[2] for name in weights}
    sides: dict[str, dict[str, int]] = {}
    for name, shape in _shapes(adapter / ADAPTER_WEIGHTS):
        layer, _, rest = name.removeprefix("base_model.model.").partition(".lora_")
        if rest in ("A.weight", "B.weight"):
            sides.setdefault(layer, {})[rest[0]] = shape[1] if rest[0] == "A" else shape[0]
    missing = sorted({layer.rpartition(".")[2] for layer in sides} - kinds)
    if weights and sides and len(missing) == len({layer.rpartition(".")[2] for layer in sides}):
        raise UsageError(does_not_fit(adapter, f"the LLM has no {', '.join(missing)}"))
    for layer, size in sides.items():
        # Files of some LLMs lack the first part of the names ("transformer.").
        there = weights.get(layer) or weights.get(layer.partition(".")[2])
        # Conv1D has its weights transposed.
        if there and sorted(there) != sorted(size.values()):
            reason = f"{layer} is {list(size.values())} in one and {there} in the other"
            raise UsageError(does_not_fit(adapter, reason))


def _shapes(file: Path) -> Iterator[tuple[str, list[int]]]:
    from safetensors import safe_open

    if file.is_file():
        with safe_open(file, "np") as tensors:
            for name in tensors.keys():  # noqa: SIM118
                yield name, tensors.get_slice(name).get_shape()
