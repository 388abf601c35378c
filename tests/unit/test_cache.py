"""``archloop cache``: lists and removes what the project wrote, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from archloop.cli import cli
from archloop.errors import UsageError
from archloop.machine.downloads import lock
from archloop.text import bytes_in_words


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with 3,000 bytes of archloop's in a folder that holds other files too."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("ARCHLOOP_CACHE", str(folder))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    for name, size in {
        "wheels/llm.whl": 1000,
        "models/llm/deep/weights": 700,
        "models/llm/config.json": 300,
        "tasks/.digits.partial/images.npy": 500,
        ".merged-x/model.bin": 500,
        "mine.txt": 10,
        "photos/me.png": 20,
        "locks/llm.lock": 0,
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(bytes(size))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "big").write_bytes(bytes(5000))
    (folder / "corpora").mkdir()
    (folder / "corpora" / "linked").symlink_to(tmp_path / "elsewhere")
    return folder


def cache_command(*arguments: str) -> str:
    return CliRunner().invoke(cli, ["cache", *arguments], catch_exceptions=False).output


def listed(cache: Path) -> list[str]:
    return sorted(str(p.relative_to(cache)) for p in cache.rglob("*") if not p.is_dir())


def total(link: int) -> str:
    return f"{(3000 + link) / 1024:.1f} KiB"


def test_what_is_cached_is_listed_with_sizes(cache: Path) -> None:
    before = listed(cache)
    lines = cache_command().splitlines()
    link = len(str(cache.parent / "elsewhere"))
    assert [" ".join(line.split()) for line in lines[:-1]] == [
        "1000 B wheels/llm.whl (downloads from the package index)",
        "1000 B models/llm (unpacked LLMs)",
        "500 B tasks/.digits.partial (decoded images)",
        f"{link} B corpora/linked (seed corpora)",
        "500 B .merged-x (leftovers)",
    ]
    assert lines[-1].startswith(f"{cache}: {total(link)} in all ({3000 + link:,} bytes)")
    assert listed(cache) == before


def test_clear_removes_what_archloop_wrote_and_says_how_much(cache: Path) -> None:
    link = len(str(cache.parent / "elsewhere"))
    assert cache_command("--clear").splitlines()[-1] == (
        f"{cache}: {total(link)} freed ({3000 + link:,} bytes)"
    )
    assert listed(cache) == ["locks/llm.lock", "mine.txt", "photos/me.png"]
    assert (cache.parent / "elsewhere" / "big").exists()
    assert cache_command() == f"{cache}: nothing is cached\n"
    assert cache_command("--clear") == f"{cache}: nothing is cached\n"


def test_json_is_a_row_an_entry(cache: Path) -> None:
    for arguments in (["--json"], ["--clear", "--json"]):
        rows = [json.loads(line) for line in cache_command(*arguments).splitlines()]
        assert len(rows) == 5
        assert rows[1] == {
            "path": str(cache / "models" / "llm"),
            "kind": "unpacked LLMs",
            "bytes": 1000,
            "cleared": "--clear" in arguments,
        }


def test_a_cache_that_is_being_written_is_not_cleared(cache: Path) -> None:
    before = listed(cache)
    with lock("llm"), pytest.raises(UsageError, match="another process is writing llm; clear"):
        cache_command("--clear")
    assert listed(cache) == before


def test_the_hubs_cache_is_named_and_not_touched(cache: Path) -> None:
    file = cache.parent / "hf" / "hub" / "models--x" / "blob"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"x")
    last = cache_command("--clear").splitlines()[-1]
    assert last.startswith(
        f"{cache.parent / 'hf' / 'hub'}: the Hugging Face hub's cache, not touched"
    )
    assert file.exists()


def test_without_a_cache_nothing_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARCHLOOP_CACHE", str(tmp_path / "none"))
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert cache_command("--clear") == f"{tmp_path / 'none'}: nothing is cached\n"
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("n", "said"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (3 << 30, "3.0 GiB"),
        (5 << 50, "5120.0 TiB"),
    ],
)
def test_bytes_in_words(n: int, said: str) -> None:
    assert bytes_in_words(n) == said
