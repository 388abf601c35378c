"""The layers of ARCHITECTURE.md, read off the imports of the source."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import archloop

SOURCE = Path(archloop.__file__).parent

ROOMS = (
    {
        "types",
        "errors",
        "progress",
        "pace",
        "text",
        "files",
        "worker",
        "stats",
        "platforms",
        "blocks",
    },
    {"config"},
    {"code"},
    {"machine"},
    {"store"},
    {"novelty"},
    {"search"},
    {"tasks"},
    {"sandbox"},
    {"corpus.pairs"},
    {"llm"},
    {"corpus"},
    {"evaluation"},
    {"doctor"},
    {"loop"},
    {"report"},
    {"cli", "__main__", "api"},
)
"""Lowest first: a module imports its own room and lower ones; ``archloop/__init__`` is the top.

``corpus.pairs`` is lower than the rest of its room: fine-tuning reads pairs, and building a corpus
needs the LLM's tokenizer.
"""

ENGINES = {
    "accelerate",
    "datasets",
    "gguf",
    "matplotlib",
    "openai",
    "openvino",
    "openvino_genai",
    "openvino_tokenizers",
    "pandas",
    "peft",
    "pyarrow",
    "safetensors",
    "scipy",
    "sklearn",
    "sqlalchemy",
    "torch",
    "transformers",
    "trl",
    "vllm",
}
"""What takes long to import."""

OWNERS = {
    "torch": {"blocks.py"},
    "sqlalchemy": {"store/rows.py", "store/schema2.py", "store/store.py", "store/tables.py"},
}
"""Files that nothing can use without the engine, so they import it at their top."""

WORKER_FILES = {
    "llm/finetuning/arguments.py",
    "llm/finetuning/checkpoints.py",
    "llm/finetuning/fit.py",
    "llm/finetuning/launch.py",
    "llm/finetuning/linear.py",
    "llm/finetuning/loading.py",
    "llm/finetuning/lora.py",
    "llm/finetuning/loss.py",
    "llm/finetuning/packing.py",
    "llm/finetuning/process.py",
    "llm/finetuning/trainer.py",
    "llm/finetuning/writing.py",
    "llm/generation/kv_cache.py",
    "llm/generation/language_model.py",
    "llm/generation/openai_engine.py",
    "llm/generation/openvino_conversion.py",
    "llm/generation/openvino_engine.py",
    "llm/generation/sampling.py",
    "llm/generation/transformers_engine.py",
    "llm/generation/vllm_engine.py",
    "sandbox/feed/batches.py",
    "sandbox/feed/feed.py",
    "sandbox/forkserver.py",
    "sandbox/candidate/answers.py",
    "sandbox/candidate/harness.py",
    "sandbox/candidate/meta.py",
    "sandbox/candidate/network.py",
    "sandbox/candidate/outputs.py",
    "sandbox/candidate/prediction.py",
    "sandbox/candidate/recording.py",
    "sandbox/candidate/state.py",
    "sandbox/candidate/trace.py",
    "sandbox/candidate/training.py",
    "sandbox/candidate/weights.py",
}
"""Files of processes of their own, which need their engines at once."""


def modules() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


def room_of(module: str) -> int:
    """Number of the room of a module, by its dotted name below ``archloop``."""
    for number, names in enumerate(ROOMS):
        if any(module == name or module.startswith(f"{name}.") for name in names):
            if module.startswith("corpus.pairs") and "corpus" in names:
                continue
            return number
    raise AssertionError(f"{module}: give this new module a room in ROOMS and in ARCHITECTURE.md")


def name_of(path: Path) -> str:
    """Dotted name of a file's module below ``archloop``."""
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(node: ast.AST) -> Iterator[str]:
    """Full names of what one statement imports."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, "relative imports hide the layer"
        assert node.module is not None
        yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_modules(path: Path) -> set[str]:
    """What a file imports of the package, wherever in the file, below ``archloop``."""
    tree = ast.parse(path.read_text("utf-8"))
    names = {name for node in ast.walk(tree) for name in imported(node)}
    found = {name.removeprefix("archloop.") for name in names if name.startswith("archloop.")}
    return found - {"__version__"}


@pytest.mark.parametrize("path", modules(), ids=lambda p: p.relative_to(SOURCE).as_posix())
def test_a_module_imports_lower_rooms_only(path: Path) -> None:
    name = name_of(path)
    if not name:
        return
    room = room_of(name)
    for other in own_modules(path):
        assert room_of(other) <= room, f"{name} (room {room}) imports {other}"


def test_every_room_is_there_and_the_walk_would_find_a_breach() -> None:
    names = [name_of(path) for path in modules() if name_of(path)]
    for number, rooms in enumerate(ROOMS):
        assert number in {room_of(name) for name in names}, f"{rooms}: no such module"
    assert room_of("store.store") < room_of("loop.run") < room_of("cli.runs")
    assert room_of("corpus.pairs") < room_of("llm.models") < room_of("corpus.seeds.build")


def at_import_time(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements that run when a module is imported: no function bodies, nothing only for types."""
    for node in body:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from at_import_time(node.orelse)
            continue
        yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for field in ("body", "orelse", "finalbody"):
                yield from at_import_time(getattr(node, field, []))


@pytest.mark.parametrize("path", modules(), ids=lambda p: p.relative_to(SOURCE).as_posix())
def test_engines_are_imported_by_their_owners_only(path: Path) -> None:
    tree = ast.parse(path.read_text("utf-8"))
    file = path.relative_to(SOURCE).as_posix()
    for statement in at_import_time(tree.body):
        for name in imported(statement):
            engine = name.partition(".")[0]
            if engine in ENGINES and file not in OWNERS.get(engine, set()) | WORKER_FILES:
                raise AssertionError(f"{file} imports {engine} at its top")


def test_the_walk_sees_through_blocks_but_not_into_functions() -> None:
    tree = ast.parse(
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    import torch\n"
        "else:\n    import gguf\n"
        "try:\n    import peft\nexcept ImportError:\n    pass\n"
        "class A:\n    import trl\n"
        "    def f(self):\n        import scipy\n"
    )
    names = {name for node in at_import_time(tree.body) for name in imported(node)}
    assert names == {"typing.TYPE_CHECKING", "gguf", "peft", "trl"}


needs_cli = pytest.mark.skipif(
    importlib.util.find_spec("archloop.cli") is None, reason="there is no command line yet"
)


@needs_cli
@pytest.mark.parametrize("name", ["archloop", "archloop.cli"])
def test_importing_the_command_line_loads_no_engine(name: str) -> None:
    script = f"import {name}, sys; print(*(m for m in sys.modules if '.' not in m))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert not ENGINES & set(done.stdout.split())


@needs_cli
def test_help_loads_click_and_the_standard_library_only() -> None:
    """This is why it is quick, whatever else the machine is doing."""
    script = """
import sys
before = set(sys.modules)
from archloop.cli import main
try:
    main()
finally:
    loaded = {name.partition(".")[0] for name in set(sys.modules) - before}
    print(*(loaded - sys.stdlib_module_names), file=sys.stderr)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, "--help"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "run" in done.stdout
    assert set(done.stderr.split()) == {"archloop", "click"}
