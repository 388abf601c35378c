"""The typed configuration of a run: presets < a TOML file < ``--set KEY=VALUE``.

Unknown keys, wrong types and impossible values are refused with the key's name and what is allowed.
The resolved configuration is kept with the run as JSON; :func:`changed_keys` names what differs on
resume. This module imports no engine.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from archloop.engine_config import OpenAIConfig, VLLMConfig, check_sections, may_change
from archloop.errors import ConfigError
from archloop.types import Isolation, Training

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
NoveltyKind = Literal["lexical", "normalized", "graph"]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class LLMConfig(_Section):
    """The base LLM; fixed for the whole run."""

    model: str = "smollm2-135m"
    """``smollm2-135m`` (embedded), a Hugging Face id, or a local folder; of the ``openai`` engine
    the name that the server knows."""
    revision: str | None = None
    """Commit of a Hugging Face id; pin it for a run that must be repeatable."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    warm_start: str | None = None
    """Adapter of cycle 1: a packaged name (``smollm2-135m-lemur``) or a folder. ``None``: fine-tune
    on the seeds."""


class SeedsConfig(_Section):
    """Where the first corpus comes from."""

    source: str = "lemur"
    """``lemur``, ``packaged`` (the corpus that comes with a packaged adapter), ``directory``,
    ``jsonl``, ``run`` (what an earlier run accepted) or ``none``."""
    path: str | None = None
    """The folder or file of ``directory``, ``jsonl`` and ``run``, the adapter's name of
    ``packaged``; of ``lemur`` a folder or wheel of another release in the same layout."""
    style: Literal["unparse", "source"] = "unparse"
    """``unparse``: cleaned networks are formatted anew; ``source``: their statements stay as
    written."""
    view: Literal["lexical", "normalized"] = "lexical"
    """Tokens that near-duplicates are found by: as spelled (the paper), or with names and numbers
    folded (nn-dup)."""
    split: bool = False
    """Split the pairs 8 : 1 : 1 into train, dev and test, near-duplicates together; a run then
    learns from train only."""
    within_budget: bool = True
    """Keep only seeds of at most ``task.max_params`` parameters."""
    narrow: int = Field(0, ge=0)
    """Add at most this many networks above the budget, narrowed to it by the automatic width edit
    and marked in their metadata."""
    max_tokens: int | None = Field(None, ge=64)
    """Drop seeds whose code is longer than this many LLM tokens; ``None``: no limit."""
    variant: Literal["two_prompts", "one_prompt", "full_infill"] = "two_prompts"
    """``two_prompts``: each network under an MNIST and a CIFAR-10 description (the paper);
    ``one_prompt``: under one of them, chosen by its content; ``full_infill``: under one of them,
    and once more with ``forward`` to be filled in (nn-dup)."""


class PromptConfig(_Section):
    """The prompt template; its hash is fixed for the whole run."""

    system: str = ""
    """System message; empty: the packaged template."""
    user: str = ""
    """User message with ``{dataset}``, ``{shape}``, ``{classes}``, ``{max_params}``; empty: the
    packaged one."""


class GenerationConfig(_Section):
    """Decoding; its hash is fixed for the whole run."""

    engine: Literal["transformers", "openvino", "vllm", "openai", "replay"] = "transformers"
    replay_from: str | None = None
    """Run directory whose stored completions the ``replay`` engine repeats."""
    temperature: float = Field(0.2, ge=0.0, le=5.0)
    """0 is greedy."""
    top_k: int = Field(50, ge=0)
    """0 switches top-k off."""
    top_p: float = Field(0.9, gt=0.0, le=1.0)
    max_new_tokens: int = Field(2048, ge=1)
    batch_size: int = Field(16, ge=1)
    """Sequences sampled together; part of what makes a run repeatable. Of ``openai`` only the
    steps in which ``loop.valid_target`` is looked at."""


class TaskConfig(_Section):
    """The images a network is trained on."""

    name: str = "cifar10"
    """``cifar10``, ``cifar100``, ``svhn``, ``mnist``, ``digits``, ``auto`` (CIFAR-10, else digits),
    a Hugging Face dataset id, or a folder of class folders."""
    image_size: int | None = Field(None, ge=8, le=512)
    """Resize to this many pixels a side; ``None``: as the data is (folders: 32)."""
    max_params: int = Field(500_000, ge=1)
    """Parameter budget of a candidate."""


class ProtocolConfig(_Section):
    """How every candidate is trained and measured; hashed into every row."""

    training: Training = "contract"
    """``contract``: the network's own ``learn()`` (the paper); ``harness``: a fixed loop with the
    same hyperparameters; ``both``: each in turn, the accuracy is the contract's."""
    batch_size: int = Field(64, ge=1)
    lr: float = Field(0.01, gt=0.0)
    momentum: float = Field(0.9, ge=0.0, lt=1.0)
    dropout: Fraction = 0.2
    """Offered to networks that ask for it."""
    augmentation: Literal["none", "flip", "crop_flip"] = "flip"
    augment_validation: bool = False
    """Validation images are augmented as training images are (LEMUR does that)."""
    resize: int | None = Field(None, ge=8, le=512)
    """Scale batches to this many pixels a side, after augmentation; ``None``: as the task is."""
    steps_per_batch: int = Field(1, ge=1)
    """Optimiser steps ``learn()`` may make for each batch; more is a ``protocol_violation``."""
    precision: Literal["fp32", "bf16", "auto"] = "fp32"
    """Of training; measuring is always fp32. ``bf16``: autocast around the loop, where the network
    takes it; ``auto``: bf16 where the processor computes in it."""
    channels_last: bool = True
    """Convolutional networks get their images in this memory layout if their ``forward()`` takes
    it: faster, and the same accuracy within rounding."""
    validation: str = "holdout:10%"
    """``holdout:N`` or ``holdout:P%`` of the training images (stratified), or ``test`` (the test
    split)."""
    train_images: int | None = Field(None, ge=1)
    """Use only this many training images (stratified); ``None``: all."""
    validation_images: int | None = Field(None, ge=1)
    """Use only this many validation images (stratified); ``None``: all."""

    @field_validator("validation")
    @classmethod
    def _validation(cls, value: str) -> str:
        kind, _, count = value.partition(":")
        number = count.removesuffix("%")
        most = 99 if count.endswith("%") else 2**31
        if value == "test" or (
            kind == "holdout" and number.isdecimal() and 0 < int(number) <= most
        ):
            return value
        raise ValueError("allowed: 'test', 'holdout:N' (images) or 'holdout:P%' (1 to 99 percent)")

    def input_shape(self, image: tuple[int, int, int]) -> tuple[int, int, int]:
        """(channels, height, width) that networks get of such images; graphs are traced at it."""
        return image if self.resize is None else (image[0], self.resize, self.resize)


class SandboxConfig(_Section):
    """Limits on generated code."""

    isolation: Isolation = "confined"
    workers: int = Field(0, ge=0)
    """Candidates evaluated at the same time; 0: one per CPU core."""
    threads: int = Field(1, ge=1)
    """CPU threads of one candidate."""
    memory_mb: int = Field(4096, ge=256)
    disk_mb: int = Field(64, ge=1)
    build_seconds: float = Field(20.0, gt=0)
    """Wall-clock limit of import, instantiation and dummy forward together."""
    train_seconds: float = Field(1800.0, gt=0)
    """Wall-clock limit of the epoch."""
    predict_seconds: float = Field(300.0, gt=0)


class NoveltyConfig(_Section):
    """Near-duplicate detection (paper, appendix A.1)."""

    enabled: bool = True
    """``False``: near-duplicates are scored but not rejected (ablation)."""
    kind: tuple[NoveltyKind, ...] = ("lexical",)
    """What a candidate must be novel in, one or several: ``lexical`` tokens (the paper),
    ``normalized`` ones (names and numbers folded), the traced ``graph``. All are scored."""
    shingle_size: int = Field(10, ge=1)
    permutations: int = Field(256, ge=16)
    lsh_threshold: Fraction = 0.85
    near_duplicate_threshold: Fraction = 0.90

    @field_validator("kind", mode="before")
    @classmethod
    def _kinds(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("kind")
    @classmethod
    def _some_kind(cls, value: tuple[NoveltyKind, ...]) -> tuple[NoveltyKind, ...]:
        if not value or len(set(value)) < len(value):
            raise ValueError("allowed: one or more of 'lexical', 'normalized', 'graph', each once")
        return value


class SelectionConfig(_Section):
    """What enters the corpus."""

    min_accuracy: Fraction = 0.40
    """First-epoch accuracy a candidate must reach; 0 switches the threshold off (ablation)."""
    percentile: float | None = Field(None, gt=0, lt=100)
    """Raise the threshold, never below ``min_accuracy``, to this percentile of the first-epoch
    accuracies of the cycle and those before it (``window`` in all); ``None``: it stays (paper)."""
    window: int = Field(3, ge=1)
    """Cycles that ``percentile`` looks at, the current one included."""
    weighting: Literal["none", "accuracy"] = "none"
    """``accuracy``: fine-tuning sees accurate networks more often than others (see ``mix.py``)."""


class FinetuneConfig(_Section):
    """LoRA fine-tuning (paper, section 3.1)."""

    enabled: bool = True
    """``False``: every cycle uses the adapter of cycle 1 (ablation)."""
    init: Literal["base", "previous"] = "base"
    """``base``: from the base LLM on all pairs; ``previous``: go on from the last adapter."""
    replay: int = Field(0, ge=0)
    """With ``previous``: pairs of the older corpus mixed into the new ones."""
    replay_seeds: int | None = Field(None, ge=0)
    """With ``previous``: at most this many of them are seeds; ``None``: as the sample falls."""
    lora_r: int = Field(32, ge=1)
    lora_alpha: int = Field(32, ge=1)
    lora_dropout: Fraction = 0.05
    target_modules: tuple[str, ...] = (
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "up_proj",
        "down_proj",
        "gate_proj",
    )
    layers: int | None = Field(None, ge=1)
    """Adapt only the first this many layers; ``None``: all."""
    epochs: float = Field(5.0, gt=0)
    max_steps: int | None = Field(None, ge=1)
    """Stop after this many optimiser steps even if epochs are left."""
    lr: float = Field(1e-5, gt=0)
    scheduler: Literal["cosine", "linear", "constant_with_warmup"] = "cosine"
    warmup_steps: int = Field(20, ge=0)
    weight_decay: float = Field(0.01, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    batch_size: int = Field(1, ge=1)
    grad_accumulation: int = Field(4, ge=1)
    optimizer: Literal["adamw", "paged_adamw_8bit"] = "adamw"
    max_length: int = Field(4096, ge=128)
    """Longer prompt-code pairs are left out of training, and counted."""
    packing: bool = False
    """Lay the pairs of a batch end to end, each attending to itself only, in place of padding."""
    gradient_checkpointing: bool | Literal["auto"] = "auto"
    """Compute activations again in the backward pass instead of keeping them; ``auto``: where they
    would not fit into the memory that is free."""
    quantization: Literal["none", "nf4"] = "none"
    """``nf4``: the frozen weights in 4 bits (QLoRA); needs bitsandbytes."""
    processes: int | None = Field(None, ge=1)
    """Processes that train together, each on ``batch_size`` pairs at a time; ``None``: one for
    each GPU."""
    dev_share: float = Field(0.0, ge=0, le=0.5)
    """Share of the pairs held out to measure the dev loss; networks that differ in names and
    numbers only stay on one side."""
    dev_steps: int | None = Field(None, ge=1)
    """Optimiser steps between two measurements of the dev loss; ``None``: an epoch."""
    patience: int | None = Field(None, ge=1)
    """Stop when the dev loss has not fallen for this many measurements. With ``dev_share`` the
    adapter is the one with the lowest dev loss."""
    adapter_dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the stored adapter weights; bfloat16 halves the files."""


class LoopConfig(_Section):
    """How many cycles, and when one ends."""

    cycles: int = Field(22, ge=1)
    completions: int = Field(150, ge=1)
    """Completions sampled in a cycle; the cap when ``valid_target`` is set."""
    valid_target: int | None = Field(None, ge=1)
    """End the cycle once this many candidates are valid (decided at batch boundaries)."""
    final_finetune: bool = False
    """Fine-tune once more after the last cycle, so the run ends with an adapter of everything
    accepted."""


class RunConfig(_Section):
    """Everything that decides what a run does."""

    seed: int = Field(0, ge=0, lt=2**31)
    llm: LLMConfig = LLMConfig()
    seeds: SeedsConfig = SeedsConfig()
    prompt: PromptConfig = PromptConfig()
    generation: GenerationConfig = GenerationConfig()
    openai: OpenAIConfig = OpenAIConfig()
    vllm: VLLMConfig = VLLMConfig()
    task: TaskConfig = TaskConfig()
    protocol: ProtocolConfig = ProtocolConfig()
    sandbox: SandboxConfig = SandboxConfig()
    novelty: NoveltyConfig = NoveltyConfig()
    selection: SelectionConfig = SelectionConfig()
    finetune: FinetuneConfig = FinetuneConfig()
    loop: LoopConfig = LoopConfig()

    @model_validator(mode="after")
    def _consistent(self) -> RunConfig:
        if self.seeds.source in ("directory", "jsonl", "run", "packaged") and not self.seeds.path:
            raise ValueError(f"seeds.path: required by seeds.source = {self.seeds.source!r}")
        if self.generation.engine == "replay" and not self.generation.replay_from:
            raise ValueError("generation.replay_from: required by generation.engine = 'replay'")
        if self.finetune.init == "base":
            for key in ("replay", "replay_seeds"):
                if getattr(self.finetune, key):
                    raise ValueError(f"finetune.{key}: only with finetune.init = 'previous'")
        if not self.finetune.dev_share:
            for key in ("dev_steps", "patience"):
                if getattr(self.finetune, key):
                    raise ValueError(f"finetune.{key}: only with finetune.dev_share above 0")
        check_sections(self.generation.engine, {"openai": self.openai, "vllm": self.vllm})
        if self.generation.engine == "openai":
            self._check_remote()
        return self

    def _check_remote(self) -> None:
        """Refuse what makes no sense where the LLM is on a server: its weights are not here."""
        if not self.openai.base_url:
            raise ValueError("openai.base_url: required by generation.engine = 'openai'")
        wrong = {
            "llm.warm_start": self.llm.warm_start is not None,
            "finetune.enabled": self.finetune.enabled,
            "loop.final_finetune": self.loop.final_finetune,
            "seeds.max_tokens": self.seeds.max_tokens is not None,
        }
        keys = [key for key, set_ in wrong.items() if set_]
        if keys:
            values = {"llm.warm_start": "none", "seeds.max_tokens": "none"}
            right = ", ".join(f"{key}={values.get(key, 'false')}" for key in keys)
            raise ValueError(
                f"generation.engine = 'openai' cannot fine-tune or load the LLM, which is on a "
                f"server; set {right}"
            )


def preset_names() -> list[str]:
    """Names of the packaged presets, sorted."""
    folder = resources.files("archloop") / "presets"
    return sorted(
        p.name.removesuffix(".toml") for p in folder.iterdir() if p.name.endswith(".toml")
    )


def load_config(source: str | Path | None = None, overrides: Iterable[str] = ()) -> RunConfig:
    """Resolve a configuration.

    Args:
        source: A preset's name, a TOML file (which may start from a preset with a top-level key
            ``preset = "embedded"``), or ``None`` for the ``embedded`` preset.
        overrides: ``KEY=VALUE`` strings with dotted keys; a value is TOML, or plain text.

    Raises:
        ConfigError: Naming the key and what is allowed.
    """
    return resolve_with(_read_source("embedded" if source is None else source), overrides)


def resolve_with(tree: dict[str, Any], overrides: Iterable[str]) -> RunConfig:
    """Validate a nested mapping with ``KEY=VALUE`` overrides on top."""
    for text in overrides:
        _apply_override(tree, text)
    return resolve(tree)


def resolve(tree: Mapping[str, Any]) -> RunConfig:
    """Validate a nested mapping into a configuration, or raise :class:`ConfigError`."""
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        raise ConfigError("; ".join(_explain(dict(e)) for e in error.errors())) from None


def config_digest(section: BaseModel | Mapping[str, Any]) -> str:
    """First 12 hex digits of the SHA-256 of a section's canonical JSON."""
    data = section.model_dump(mode="json") if isinstance(section, BaseModel) else dict(section)
    text = json.dumps(data, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def changed_keys(old: RunConfig, new: RunConfig) -> list[str]:
    """Dotted keys whose values differ and may not, each as ``key: old -> new``."""
    a, b = _flatten(old.model_dump(mode="json")), _flatten(new.model_dump(mode="json"))
    return [
        f"{key}: {a.get(key)!r} -> {b.get(key)!r}"
        for key in sorted(a.keys() | b.keys())
        if a.get(key) != b.get(key) and not may_change(key)
    ]


def _read_source(source: str | Path) -> dict[str, Any]:
    if str(source) in preset_names():
        text = (resources.files("archloop") / "presets" / f"{source}.toml").read_text("utf-8")
        return tomllib.loads(text)
    path = Path(source)
    if not path.is_file():
        allowed = ", ".join(preset_names())
        raise ConfigError(f"{source}: no such file or preset; presets are {allowed}")
    try:
        own = tomllib.loads(path.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None
    base = own.pop("preset", None)
    if base is None:
        return own
    if base not in preset_names():
        raise ConfigError(f"{path}: preset: {base!r} unknown; allowed: {', '.join(preset_names())}")
    return _merge(_read_source(base), own)


def _merge(base: dict[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    for key, value in top.items():
        if isinstance(value, Mapping) and isinstance(base.get(key), dict):
            _merge(base[key], value)
        else:
            base[key] = value
    return base


def _apply_override(tree: dict[str, Any], text: str) -> None:
    key, equals, raw = text.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise ConfigError(f"--set {text}: expected KEY=VALUE, for example loop.cycles=3")
    for part in parts[:-1]:
        tree = tree.setdefault(part, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"--set {text}: {key} is not a section")
    if raw.strip() == "none":
        tree[parts[-1]] = None
        return
    try:
        tree[parts[-1]] = tomllib.loads(f"value = {raw}")["value"]
    except tomllib.TOMLDecodeError:
        tree[parts[-1]] = raw


def _explain(error: Mapping[str, Any]) -> str:
    where = ".".join(str(part) for part in error["loc"])
    message = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        return f"{where}: unknown key; allowed here: {', '.join(_allowed_keys(error['loc'][:-1]))}"
    value = error.get("input")
    shown = isinstance(value, str | int | float | bool | list) and not where.startswith("openai.")
    got = f" (got {value!r})" if shown else ""  # a key put there by mistake is not repeated
    return f"{where}: {message}{got}" if where else message


def _allowed_keys(loc: tuple[Any, ...]) -> list[str]:
    model: Any = RunConfig
    for part in loc:
        model = model.model_fields[part].annotation
    return sorted(model.model_fields)


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
