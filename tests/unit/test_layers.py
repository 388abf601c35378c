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

LAYERS = (
    {"types", "errors", "config", "engine_config", "sections", "presets"},
    {
        "chat",
        "code_policy",
        "diversity",
        "files",
        "footprint",
        "hints",
        "mix",
        "novelty",
        "progress",
        "prompts",
        "provenance",
        "selection",
        "spending",
        "stats",
        "text",
        "timeline",
        "worker",
    },
    {
        "assets",
        "database",
        "executors",
        "finetuning",
        "generation",
        "llm",
        "run_dir",
        "sandbox",
        "seeds",
        "store",
        "tasks",
    },
    {"comparison", "context", "corpus", "evaluation", "graphs", "pipeline", "rejudge", "stages"},
    {"loop"},
    {"checks", "doctor", "machine", "report"},
    {"cli", "__main__"},
)
"""A module may import its own layer and lower ones; the package's ``__init__`` is the top."""

SIDEWAYS = {
    "executors": {"sandbox"},
    "finetuning": {"assets", "llm"},
    "generation": {"assets", "llm", "store", "run_dir"},
    "llm": {"assets"},
    "run_dir": {"store"},
    "seeds": {"assets", "llm", "run_dir", "tasks"},
    "store": {"database"},
    "tasks": {"assets"},
}
"""Which adapters to the world (layer 2) may know of which."""

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
    "sqlalchemy": {"database.py", "store.py"},
}
"""Files that nothing can use without the engine, so they import it at their top."""

WORKER_FILES = {
    "finetuning/arguments.py",
    "finetuning/checkpoints.py",
    "finetuning/fit.py",
    "finetuning/launch.py",
    "finetuning/linear.py",
    "finetuning/loading.py",
    "finetuning/lora.py",
    "finetuning/loss.py",
    "finetuning/packing.py",
    "finetuning/trainer.py",
    "finetuning/writing.py",
    "generation/kv_cache.py",
    "generation/language_model.py",
    "generation/openai_engine.py",
    "generation/openvino_conversion.py",
    "generation/openvino_engine.py",
    "generation/sampling.py",
    "generation/transformers_engine.py",
    "generation/vllm_engine.py",
    "sandbox/batches.py",
    "sandbox/feed.py",
    "sandbox/forkserver.py",
    "sandbox/harness.py",
    "sandbox/meta.py",
    "sandbox/network.py",
    "sandbox/prediction.py",
    "sandbox/recording.py",
    "sandbox/state.py",
    "sandbox/trace.py",
    "sandbox/training.py",
    "sandbox/weights.py",
}
"""Files of processes of their own, which need their engines at once."""


def modules() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


def unit_of(path: Path) -> str:
    """The package's direct child that a file belongs to."""
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def layer_of(unit: str) -> int:
    for number, units in enumerate(LAYERS):
        if unit in units:
            return number
    raise AssertionError(f"{unit}: give this new module a layer in LAYERS and in ARCHITECTURE.md")


def imported(node: ast.AST) -> Iterator[str]:
    """Full names of what one statement imports."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, "relative imports hide the layer"
        assert node.module is not None
        yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_units(path: Path) -> set[str]:
    """The direct children of the package that a file imports, wherever in the file."""
    tree = ast.parse(path.read_text("utf-8"))
    names = {name for node in ast.walk(tree) for name in imported(node)}
    units = {name.split(".")[1] for name in names if name.startswith("archloop.")}
    return units - {"__version__"}


@pytest.mark.parametrize("path", modules(), ids=lambda p: p.relative_to(SOURCE).as_posix())
def test_a_module_imports_lower_layers_only(path: Path) -> None:
    unit = unit_of(path)
    if unit == "__init__":
        return
    layer = layer_of(unit)
    for other in own_units(path) - {unit}:
        assert layer_of(other) <= layer, f"{unit} (layer {layer}) imports {other}"
        if layer == 2 and layer_of(other) == 2:
            assert other in SIDEWAYS.get(unit, set()), f"{unit} imports {other}, its neighbour"


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
