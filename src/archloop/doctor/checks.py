"""Single things that a configuration may need: packages, a server that answers, downloads, room."""

from __future__ import annotations

import importlib.util
import json
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from urllib.parse import quote

from archloop.config import RunConfig
from archloop.config.engines import OpenAIConfig
from archloop.errors import ConfigError
from archloop.machine.downloads import WheelAsset, cache_dir

_REACH_SECONDS = 5.0
_GIB = 2**30


@dataclass(frozen=True)
class Check:
    """One thing looked at."""

    name: str
    ok: bool | None
    """``False``: the configuration cannot run as it is; ``None``: worth knowing, or not known."""
    detail: str
    """What was found."""
    needed: str = ""
    """What would be right; empty where all is well."""


def packages(config: RunConfig, *, on_gpu: bool) -> Iterator[Check]:
    """The packages that the configuration uses beside its engine, and how to install missing ones.

    Args:
        config: The configuration.
        on_gpu: Whether fine-tuning will be on a GPU; elsewhere its 8-bit optimiser is replaced.
    """
    wanted = {"transformers": ("transformers", ""), "datasets": ("datasets", "")}
    if config.finetune.enabled:
        wanted |= {"peft": ("peft", ""), "accelerate": ("accelerate", "")}
    if config.finetune.enabled and config.finetune.optimizer == "paged_adamw_8bit":
        why = " (for finetune.optimizer = 'paged_adamw_8bit')"
        wanted["bitsandbytes"] = ("'archloop[cuda]'", why)
    if config.finetune.enabled and config.finetune.quantization == "nf4":
        why = " (for finetune.quantization = 'nf4')"
        wanted["bitsandbytes"] = ("'archloop[cuda]'", why)
    for module, (install, why) in wanted.items():
        if importlib.util.find_spec(module) is not None:
            yield Check(f"package {module}", True, "installed")
            continue
        replaced = (
            module == "bitsandbytes" and not on_gpu and config.finetune.quantization == "none"
        )
        needed = f"pip install {install}{why}"
        yield Check(f"package {module}", None if replaced else False, "not installed", needed)


def server(config: RunConfig) -> Iterator[Check]:
    """Whether the OpenAI-compatible server answers, accepts the key and serves the LLM."""
    remote = config.openai
    try:
        key = remote.api_key()
    except ConfigError:  # the pre-flight check has named it
        return
    yield _serves(config.llm.model, remote, key)
    if remote.cap_tokens is None and remote.cap_cost is None:
        needed = "openai.cap_tokens or openai.cap_cost, where tokens cost money"
        yield Check("caps", None, "none", needed)


def _serves(model: str, remote: OpenAIConfig, key: str | None) -> Check:
    url = f"{remote.base_url}".rstrip("/") + "/models"
    request = urllib.request.Request(url)
    if key is not None:
        request.add_unredirected_header("Authorization", f"Bearer {key}")
    try:
        with urllib.request.urlopen(request, timeout=_REACH_SECONDS) as answer:
            found = {entry["id"] for entry in json.load(answer)["data"]}
    except urllib.error.HTTPError as error:
        needed = "the right openai.base_url and openai.api_key_env"
        return Check("LLM", False, f"{url} answers {error.code} {error.reason}", needed)
    except HTTPException:
        return Check("LLM", False, f"{url} answers, but not by HTTP", "a server there")
    except OSError as error:
        return Check("LLM", False, f"{url} cannot be reached ({error})", "a server there")
    except (ValueError, KeyError, TypeError):
        # The list is not in every server; what counts is chat completions.
        return Check("LLM", None, f"{url} answers, but lists no models", f"{model} there")
    if model in found:
        return Check("LLM", True, f"{model}: served by {remote.base_url}")
    listed = ", ".join(sorted(found)[:5]) or "none"
    return Check("LLM", None, f"{remote.base_url} lists other models: {listed}", f"{model} there")


def wheel(name: str, asset: WheelAsset) -> Check:
    """Whether a pinned wheel is in the cache."""
    if (cache_dir() / "wheels" / asset.filename).is_file():
        return Check(name, True, f"{asset.project} {asset.version}: in the cache")
    detail = f"{asset.project} {asset.version}: not in the cache"
    return Check(name, None, detail, "the package index at the first use, through pip")


def hub(name: str, kind: str, id: str, revision: str, todo: str) -> Check:
    """Whether the Hugging Face Hub would give a model or data set that is not in its cache."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return Check(
            name, False, f"{id}: not in the cache, and HF_HUB_OFFLINE is set", f"{id}{todo}"
        )
    place = f"{kind}/{quote(id)}/revision/{quote(revision, safe='')}"
    request = urllib.request.Request(f"{constants.ENDPOINT}/api/{place}")
    try:
        with urllib.request.urlopen(request, timeout=_REACH_SECONDS):
            return Check(name, True, f"{id}: on the Hugging Face Hub{todo}")
    except urllib.error.HTTPError as error:
        detail = f"{id}: the Hugging Face Hub answers {error.code} {error.reason}"
    except (OSError, HTTPException) as error:
        detail = f"{id}: the Hugging Face Hub cannot be reached ({error})"
    return Check(name, False, detail, f"{id}{todo}")


def room(name: str, folder: Path, need: float) -> Check:
    """Whether a folder, which need not exist, has room for ``need`` GiB."""
    there = folder.resolve()
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free / _GIB
    enough = free >= need
    return Check(name, enough, f"{free:.1f} GiB free", "" if enough else f"about {need:.1f} GiB")
