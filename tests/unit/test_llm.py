"""LLMs and adapters by name, and what is wrong with their files, before one is loaded."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from archloop.config import LLMConfig
from archloop.corpus.seed_corpus import packaged_corpus
from archloop.errors import ConfigError, UsageError
from archloop.llm.models import (
    check_adapter,
    check_files,
    local_llm,
    resolve_adapter,
    resolve_model,
)

PACKAGED = "smollm2-135m-lemur"


def test_what_is_on_this_machine_and_no_llm_is_not_looked_for_on_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "owner" / "empty").mkdir(parents=True)
    (tmp_path / "owner" / "file").touch()
    for name, said in {
        "owner/empty": "llm.model: PWD/owner/empty has no config.json; expected a folder",
        "owner/file": "llm.model: PWD/owner/file is no folder; expected a folder",
        "./owner/nothing": "llm.model: no such folder: PWD/owner/nothing",
        "../nothing": "llm.model: no such folder: PWD/../nothing",
        "~/nothing": "llm.model: no such folder: PWD/nothing",
        "/nothing/here": "llm.model: no such folder: /nothing/here",
    }.items():
        with pytest.raises(ConfigError, match=re.escape(said.replace("PWD", str(tmp_path)))):
            resolve_model(LLMConfig(model=name))
    assert local_llm("owner/nothing") is None
    (tmp_path / "owner" / "empty" / "config.json").write_text("{}")
    assert resolve_model(LLMConfig(model="~/owner/empty")) == tmp_path / "owner" / "empty"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("config.json", b"no", "no JSON: Expecting value"),
        ("config.json", b"[]", "expected a JSON object"),
        ("tokenizer.json", b"\xff", "no JSON: 'utf-8' codec"),
        ("generation_config.json", b"[" * 100_000, "no JSON: maximum recursion depth"),
        ("model-1-of-2.safetensors", b"hi", "no weights, or not all of them"),
    ],
)
def test_a_damaged_file_is_named(name: str, content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    check_files(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=rf"{re.escape(name)}: {re.escape(said)}"):
        resolve_model(LLMConfig(model=str(tmp_path)))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("adapter_config.json", None, ": no adapter_config.json"),
        ("adapter_config.json", "{}", "/adapter_config.json: names no peft_type"),
        ("adapter_config.json", "no", "/adapter_config.json: no JSON"),
        ("adapter_model.safetensors", None, ": no adapter_model.safetensors"),
        ("adapter_model.safetensors", "", "/adapter_model.safetensors: no weights"),
    ],
)
def test_a_damaged_adapter_is_named(
    name: str, content: str | None, said: str, tmp_path: Path
) -> None:
    folder = tmp_path / "adapter"
    shutil.copytree(resolve_adapter(PACKAGED), folder)
    check_adapter(folder)
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(content)
    with pytest.raises(UsageError, match=re.escape(f"adapter{said}")):
        check_adapter(folder)


def test_an_adapter_cut_short_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    shutil.copytree(resolve_adapter(PACKAGED), folder)
    with (folder / "adapter_model.safetensors").open("r+b") as weights:
        weights.truncate(weights.seek(0, 2) - 1)
    with pytest.raises(UsageError, match=r"adapter_model\.safetensors: no weights, or not all"):
        resolve_adapter(str(folder))


def test_what_the_user_gave_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    said = f"'nobody' is no packaged adapter and {tmp_path}/nobody no adapter folder; packaged: "
    for key in ("llm.warm_start", "--adapter"):
        with pytest.raises(ConfigError, match=re.escape(f"{key}: {said}")):
            resolve_adapter("nobody", key)
    with pytest.raises(ConfigError, match=re.escape(f"seeds.path: {said}")):
        packaged_corpus("nobody")


HUB = {
    "owner/absent": (401, "RepoNotFound"),
    "owner/gated": (403, "GatedRepo"),
    "owner/known": (404, "RevisionNotFound"),
    "owner/broken": (500, ""),
}
SAID_OF_HUB = {
    "owner/absent": "ConfigError llm.model: 'owner/absent' is no local folder and not on the hub: ",
    "owner/gated": "AssetError llm.model: 'owner/gated' is given on request on the hub: ",
    "owner/known": "ConfigError llm.revision: 'owner/known' has no 'v9'",
    "owner/broken": "AssetError llm.model: 'owner/broken' is no local folder and cannot be fetched",
    "no/such/name": "ConfigError llm.model: 'no/such/name' is no local folder and not on the hub: ",
}


class Hub(BaseHTTPRequestHandler):
    """Refuses as the Hugging Face Hub does: by status and a header."""

    def do_GET(self) -> None:
        (name,) = (name for name in HUB if name in self.path)
        status, code = HUB[name]
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def test_what_the_hub_refuses_is_told_apart() -> None:
    script = """
import sys
from archloop.config import LLMConfig
from archloop.llm.models import resolve_model
for name in sys.argv[1:]:
    try:
        resolve_model(LLMConfig(model=name, revision="v9"))
    except Exception as error:
        print(type(error).__name__, error)
"""
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        endpoint = f"http://127.0.0.1:{server.server_address[1]}"
        done = subprocess.run(
            [sys.executable, "-c", script, *SAID_OF_HUB],
            # The library reads these when it is imported, so it has a process of its own.
            env=os.environ | {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": endpoint},
            capture_output=True,
            text=True,
            check=False,
        )
        server.shutdown()
    lines = done.stdout.splitlines()
    assert len(lines) == len(SAID_OF_HUB), done.stdout + done.stderr
    for line, said in zip(lines, SAID_OF_HUB.values(), strict=True):
        assert line.startswith(said)
