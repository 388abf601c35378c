"""The checks that a configuration must pass before a run makes anything.

``archloop run`` raises the first failure, ``archloop doctor`` shows a row for each check. Every
check is quick, downloads nothing and loads no LLM; what a machine has beyond that (memory, GPU,
network, the sandbox) is looked at in :mod:`archloop.doctor.diagnose`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from archloop.config import EMBEDDED, RunConfig
from archloop.corpus.seed_corpus import packaged_corpus
from archloop.corpus.seeds import open_source
from archloop.doctor.checks import Check
from archloop.errors import ConfigError, UsageError
from archloop.llm.adapter_files import NO_WARM_START, adapter_mismatch, check_warm_start
from archloop.llm.generation import require_engine
from archloop.llm.models import (
    check_files,
    context_length,
    local_llm,
    read_settings,
    resolve_adapter,
)
from archloop.machine.downloads import cache_dir, check_cache
from archloop.search.prompts import PromptTemplate
from archloop.store.run_dir import RunDir
from archloop.tasks import open_source as open_task


class _Plan(NamedTuple):
    """A configuration, and what a run of it still needs."""

    config: RunConfig
    needs_seeds: bool
    needs_warm_start: bool
    has_adapter: bool


def preflight(
    config: RunConfig,
    *,
    begun: bool = False,
    has_first_adapter: bool = False,
    has_adapter: bool = True,
) -> None:
    """Check everything that a run needs, before it makes anything.

    Args:
        config: The configuration of the run.
        begun: The run has its first corpus, so it does not read the seed source again.
        has_first_adapter: The run has the adapter of cycle 1, so it does not need the warm start.
        has_adapter: Each cycle of the run generates with an adapter.

    Raises:
        UsageError: The first check that fails: the key that is wrong, and what would be right.
    """
    plan = _Plan(config, not begun, not has_first_adapter, has_adapter)
    for _name, check in _CHECKS:
        check(plan)


def preflight_rows(config: RunConfig) -> Iterator[Check]:
    """Every check for a new run, as a row of ``archloop doctor``; those of no concern are absent.

    Args:
        config: The configuration of the run.
    """
    plan = _Plan(config, needs_seeds=True, needs_warm_start=True, has_adapter=_has_adapter(config))
    for name, check in _CHECKS:
        try:
            found = check(plan)
        except UsageError as error:
            yield Check(name, False, "failed", str(error))
        else:
            if found is not None:
                yield Check(name, True, found)


def loads_llm(config: RunConfig) -> bool:
    """Whether a run needs the LLM's files on this machine: to sample, or to fine-tune it."""
    traits = config.engine_traits
    return traits.loads_llm or (traits.repeats and config.finetune.enabled)


def check_llm(config: RunConfig, folder: Path, *, warm_start: bool) -> None:
    """Check an LLM that is here against the rest of the configuration.

    Args:
        config: The configuration of the run.
        folder: The LLM's.
        warm_start: The run begins with the adapter that ``llm.warm_start`` names.

    Raises:
        UsageError: The adapter is of another LLM, or the answers are longer than its context.
    """
    context = context_length(read_settings(folder / "config.json"))
    limit = config.generation.max_new_tokens
    if context is not None and config.engine_traits.loads_llm and limit >= context:
        raise ConfigError(
            f"generation.max_new_tokens: {limit}, but the LLM has a context of {context} tokens, "
            "prompt and answer together"
        )
    if warm_start and config.llm.warm_start is not None:
        check_warm_start(resolve_adapter(config.llm.warm_start), folder)


def _has_adapter(config: RunConfig) -> bool:
    """Whether a new run generates with adapters."""
    kept = config.finetune.enabled or config.llm.warm_start is not None
    return config.engine_traits.takes_adapters and kept


# Each check returns what was found, or ``None`` where the configuration does not need it.


def _cache(_plan: _Plan) -> str:
    check_cache()
    return str(cache_dir().absolute())


def _engine(plan: _Plan) -> str:
    require_engine(plan.config.engine)
    engine = plan.config.engine
    return f"{engine}: installed" if plan.config.engine_traits.module else engine


def _api_key(plan: _Plan) -> str | None:
    if plan.config.engine_traits.local or plan.config.openai.api_key() is None:
        return None
    return f"in {plan.config.openai.api_key_env}"


def _prompt(plan: _Plan) -> None:
    PromptTemplate.from_config(plan.config.prompt)


def _task(plan: _Plan) -> None:
    # The row of doctor says in addition whether the images are here.
    if plan.config.task.name != "auto":
        open_task(plan.config.task.name)


def _replayed_run(plan: _Plan) -> str | None:
    source = plan.config.generation.replay_from
    if source is not None and not RunDir(Path(source)).database.is_file():
        raise UsageError(f"generation.replay_from: no run in {Path(source).absolute()}")
    return source


def _seeds(plan: _Plan) -> str | None:
    source, path = plan.config.seeds.source, plan.config.seeds.path
    if not plan.needs_seeds:
        return None
    if source == "none":
        if plan.config.llm.warm_start is None and plan.has_adapter:
            raise ConfigError(
                "seeds.source: without seeds there is nothing to fine-tune the LLM on; name an "
                "adapter to begin with in llm.warm_start"
            )
        return None
    if source == "packaged":
        packaged_corpus(path or "")
        return f"packaged with {path}"
    if path is None:
        return None  # the pinned wheel of LEMUR, which is downloaded when it is first read
    open_source(plan.config.seeds)
    return path


def _warm_start(plan: _Plan) -> str | None:
    warm, finetune = plan.config.llm.warm_start, plan.config.finetune
    if warm is None or not plan.needs_warm_start or not plan.has_adapter:
        return None
    folder = resolve_adapter(warm)
    continued = finetune.enabled and finetune.init == "previous"
    if continued and (mismatch := adapter_mismatch(folder, finetune)):
        raise ConfigError(f"{mismatch}, or {NO_WARM_START}")
    return warm


def _llm(plan: _Plan) -> str | None:
    model = plan.config.llm.model
    if not loads_llm(plan.config) or model == EMBEDDED:
        return None
    folder = local_llm(model)
    if folder is None:
        return None  # a name of the Hugging Face Hub
    check_files(folder)
    check_llm(plan.config, folder, warm_start=plan.needs_warm_start and plan.has_adapter)
    return model


_CHECKS: tuple[tuple[str, Callable[[_Plan], str | None]], ...] = (
    ("cache", _cache),
    ("generation engine", _engine),
    ("API key", _api_key),
    ("prompt", _prompt),
    ("task", _task),
    ("replayed run", _replayed_run),
    ("seeds", _seeds),
    ("warm-start adapter", _warm_start),
    ("LLM", _llm),
)
"""In the order in which a run makes them: what is wrong in the configuration itself comes first."""
