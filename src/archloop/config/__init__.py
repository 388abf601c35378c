"""The typed configuration of a run: sections, presets, TOML files and overrides."""

from archloop.config.load import (
    RunConfig,
    changed_keys,
    config_digest,
    load_config,
    preset_names,
    resolve,
    resolve_with,
)
from archloop.config.sections import (
    EMBEDDED,
    FinetuneConfig,
    GenerationConfig,
    LLMConfig,
    LoopConfig,
    NoveltyConfig,
    PromptConfig,
    ProtocolConfig,
    SandboxConfig,
    SeedsConfig,
    SelectionConfig,
    TaskConfig,
)

__all__ = [
    "EMBEDDED",
    "FinetuneConfig",
    "GenerationConfig",
    "LLMConfig",
    "LoopConfig",
    "NoveltyConfig",
    "PromptConfig",
    "ProtocolConfig",
    "RunConfig",
    "SandboxConfig",
    "SeedsConfig",
    "SelectionConfig",
    "TaskConfig",
    "changed_keys",
    "config_digest",
    "load_config",
    "preset_names",
    "resolve",
    "resolve_with",
]
