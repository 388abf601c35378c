"""The typed configuration of a run: presets < a TOML file < ``--set KEY=VALUE``.

Unknown keys, wrong types and impossible values are refused with the key's name and what is allowed.
The resolved configuration is kept with the run as JSON; :func:`changed_keys` names what differs on
resume. This module imports no engine.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, ValidationError, model_validator

from archloop.config.base import Section
from archloop.config.engines import (
    ENGINES,
    EngineTraits,
    OpenAIConfig,
    VLLMConfig,
    check_sections,
    may_change,
)
from archloop.config.sections import (
    EMBEDDED,
    SEARCHES,
    FinetuneConfig,
    GenerationConfig,
    LLMConfig,
    LoopConfig,
    NoveltyConfig,
    PaperSearch,
    PromptConfig,
    ProtocolConfig,
    RandomSearch,
    SandboxConfig,
    SearchConfig,
    SeedsConfig,
    SelectionConfig,
    TaskConfig,
)
from archloop.errors import ConfigError


class RunConfig(Section):
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
    search: SearchConfig = PaperSearch()
    finetune: FinetuneConfig = FinetuneConfig()
    loop: LoopConfig = LoopConfig()

    @property
    def engine(self) -> str:
        """Name of the engine that answers; a random search has one of its own."""
        return "grammar" if isinstance(self.search, RandomSearch) else self.generation.engine

    @property
    def engine_traits(self) -> EngineTraits:
        """What the engine that answers is like."""
        return ENGINES[self.engine]

    @property
    def written_at_once(self) -> int:
        """Completions that are sampled at the same time."""
        remote = not self.engine_traits.local
        return self.openai.concurrency if remote else self.generation.batch_size

    @model_validator(mode="after")
    def _consistent(self) -> RunConfig:
        if self.llm.revision and self.llm.model == EMBEDDED:
            raise ValueError("llm.revision: only with the id of an LLM on the Hugging Face Hub")
        if self.seeds.source in ("directory", "jsonl", "run", "packaged") and not self.seeds.path:
            raise ValueError(f"seeds.path: required by seeds.source = {self.seeds.source!r}")
        chosen = self.generation.engine
        if ENGINES[chosen].repeats and not self.generation.replay_from:
            raise ValueError(f"generation.replay_from: required by generation.engine = {chosen!r}")
        if self.generation.replay_from and not ENGINES[chosen].repeats:
            names = " or ".join(repr(name) for name, traits in ENGINES.items() if traits.repeats)
            raise ValueError(f"generation.replay_from: only with generation.engine = {names}")
        self.finetune.check()
        search, lowest = self.search, self.generation.temperature
        if isinstance(search, PaperSearch):
            search.check(lowest, self.prompt)
        sections = {name: traits.section for name, traits in ENGINES.items()}
        check_sections(chosen, {name: getattr(self, name) for name in sections if sections[name]})
        if ENGINES[chosen].section is OpenAIConfig and not self.openai.base_url:
            raise ValueError(f"openai.base_url: required by generation.engine = {chosen!r}")
        if not ENGINES[chosen].local:
            self._check_remote()
        return self

    def _check_remote(self) -> None:
        """Refuse what makes no sense where the LLM is on a server: its weights are not here."""
        engine = self.generation.engine
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
                f"generation.engine = {engine!r} cannot fine-tune or load the LLM, which is on a "
                f"server; set {right}"
            )


def preset_names() -> list[str]:
    """Names of the packaged presets, sorted."""
    folder = resources.files("archloop.config") / "presets"
    return sorted(
        p.name.removesuffix(".toml") for p in folder.iterdir() if p.name.endswith(".toml")
    )


def load_config(
    source: str | Path | None = None,
    overrides: Sequence[str] = (),
    flags: Mapping[str, Any] | None = None,
) -> RunConfig:
    """Resolve a configuration.

    Args:
        source: A preset's name, a TOML file (which may start from a preset with a top-level key
            ``preset = "embedded"``), or ``None`` for the ``embedded`` preset.
        overrides: ``KEY=VALUE`` strings with dotted keys; a value is TOML, or plain text.
        flags: Values by dotted key on top of them, as they are: text stays text.

    Raises:
        ConfigError: Naming the key and what is allowed.
    """
    tree = _read_source("embedded" if source is None else source)
    given = ("--set", *(text.partition("=")[0].strip() for text in overrides), *(flags or {}))
    try:
        return resolve_with(tree, overrides, flags)
    except ConfigError as error:
        if source is None or str(source) in preset_names() or str(error).startswith(given):
            raise
        raise ConfigError(f"{source}: {error}") from None


def resolve_with(
    tree: dict[str, Any], overrides: Iterable[str], flags: Mapping[str, Any] | None = None
) -> RunConfig:
    """Validate a nested mapping with ``KEY=VALUE`` overrides on top, and flags on top of them."""
    # The type comes first, as it decides which other keys there are.
    for text in sorted(overrides, key=lambda text: not text.strip().startswith("search.type")):
        _apply_override(tree, text)
    for key, value in (flags or {}).items():
        section, _, name = key.partition(".")
        _merge(tree, {section: {name: value}})
    return resolve(tree)


def resolve(tree: Mapping[str, Any]) -> RunConfig:
    """Validate a nested mapping into a configuration, or raise :class:`ConfigError`."""
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        raise ConfigError("; ".join(_explain(dict(e)) for e in error.errors())) from None


_MOVED = {
    f"loop.{key}": f"search.{key}"
    for key in ("temperature_step", "temperature_max", "most_near_duplicates", "least_valid")
}
"""Keys of earlier versions, and where they are now."""


def resolve_stored(tree: Mapping[str, Any]) -> RunConfig:
    """The configuration that a run keeps, which may be an earlier version's; see :func:`resolve`.

    Raises:
        ConfigError: It is no configuration of this version or an earlier one.
    """
    own = {k: dict(v) if isinstance(v, Mapping) else v for k, v in tree.items()}
    for old, new in _MOVED.items():
        (section, key), (target, name) = old.split("."), new.split(".")
        if isinstance(own.get(section), dict) and key in own[section]:
            own.setdefault(target, {})[name] = own[section].pop(key)
    return resolve(own)


def config_digest(section: BaseModel | Mapping[str, Any]) -> str:
    """First 12 hex digits of the SHA-256 of a section's canonical JSON."""
    data = section.model_dump(mode="json") if isinstance(section, BaseModel) else dict(section)
    text = json.dumps(data, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


_MAY_GROW = frozenset({"loop.cycles"})
"""Keys that a run may go on with at a higher value."""


def changed_keys(old: RunConfig, new: RunConfig) -> list[str]:
    """Dotted keys whose values differ and may not, each as ``key: old -> new``."""
    a, b = _flatten(old.model_dump(mode="json")), _flatten(new.model_dump(mode="json"))
    return [
        f"{key}: {a.get(key)!r} -> {b.get(key)!r}"
        for key in sorted(a.keys() | b.keys())
        if a.get(key) != b.get(key)
        and not may_change(key)
        and not (key in _MAY_GROW and b[key] > a[key])
    ]


def _read_source(source: str | Path) -> dict[str, Any]:
    if str(source) in preset_names():
        file = resources.files("archloop.config") / "presets" / f"{source}.toml"
        return tomllib.loads(file.read_text("utf-8"))
    path = Path(source)
    if (path / "config.json").is_file():
        raise ConfigError(f"{source}: a run's folder; to go on with the run: --run-dir {source}")
    if not path.is_file():
        allowed = ", ".join(preset_names())
        raise ConfigError(f"{source}: no such file or preset; presets are {allowed}")
    try:
        own = tomllib.loads(path.read_text("utf-8-sig"))
    except RecursionError:
        raise ConfigError(f"{path}: not valid TOML: nested too deep") from None
    except ValueError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None
    base = own.pop("preset", None)
    if base is None:
        return own
    if not isinstance(base, str) or base not in preset_names():
        raise ConfigError(f"{path}: preset: {base!r} unknown; allowed: {', '.join(preset_names())}")
    return _merge(_read_source(base), own)


def _merge(base: dict[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    _leave_other_search(base, top.get("search"))
    for key, value in top.items():
        if isinstance(value, Mapping) and isinstance(base.get(key), dict):
            _merge(base[key], value)
        else:
            base[key] = value
    return base


def _leave_other_search(base: dict[str, Any], top: Any) -> None:
    """Drop the keys of ``[search]`` below one of another type, which has other keys."""
    below = base.get("search")
    if not isinstance(below, Mapping) or not isinstance(top, Mapping):
        return
    before = below.get("type", "paper")
    if top.get("type", before) != before:
        del base["search"]


def _apply_override(tree: dict[str, Any], text: str) -> None:
    key, equals, raw = text.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise ConfigError(f"--set {text}: expected KEY=VALUE, for example loop.cycles=3")
    if parts == ["search", "type"]:
        _leave_other_search(tree, {"type": raw.strip().strip("\"'")})
    for part in parts[:-1]:
        tree = tree.setdefault(part, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"--set {text}: {key} is not a section")
    try:
        value = tomllib.loads(f"value = {raw}")
    except (ValueError, RecursionError):
        value = {}
    # Text of several lines may go on like TOML.
    tree[parts[-1]] = value["value"] if value.keys() == {"value"} else raw


_LONGEST_VALUE = 100
"""Characters of a wrong value that are repeated."""
_PLAIN = {"model_type": "a section with keys of its own", "tuple_type": "a list"}
"""What pydantic says in Python's words."""


def _explain(error: Mapping[str, Any]) -> str:
    loc = tuple(error["loc"])
    if loc[:1] == ("search",) and len(loc) > 1:
        loc = ("search", *loc[2:])  # without the type, which pydantic puts between
    where = ".".join(str(part) for part in loc)
    message = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        if where in _MOVED:
            return f"{where}: is now {_MOVED[where]}"
        return f"{where}: unknown key; allowed here: {', '.join(_allowed_keys(error['loc'][:-1]))}"
    if error["type"] == "union_tag_invalid":
        allowed = ", ".join(repr(name) for name in SEARCHES)
        return f"search.type: {error['ctx']['tag']!r} unknown; allowed: {allowed}"
    message = _PLAIN.get(error["type"], message)
    value = error.get("input")
    shown = isinstance(value, str | int | float | bool | list) and not where.startswith("openai.")
    # Of [openai] none, as it may be a key put there by mistake.
    got = f" (got {repr(value)[:_LONGEST_VALUE]})" if shown else ""
    return f"{where}: {message}{got}" if where else message


def _allowed_keys(loc: tuple[Any, ...]) -> list[str]:
    model: Any = RunConfig
    for part in loc:
        model = SEARCHES[part] if part in SEARCHES else model.model_fields[part].annotation
        if not hasattr(model, "model_fields"):  # the union of the searches
            continue
    return sorted(model.model_fields)


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
