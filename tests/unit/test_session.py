"""The record of one start of a run."""

from __future__ import annotations

import json
import platform
import sys
from importlib.metadata import version

import pytest

from archloop.machine.session import session


def test_a_session_has_machine_versions_and_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/archloop", "run", "my demo.toml"])
    found = session()
    assert found["command"] == "archloop run 'my demo.toml'"
    assert found["machine"]["cores"] >= 1
    assert found["versions"]["torch"] == version("torch")
    assert found["versions"]["python"] == platform.python_version()


def test_a_session_does_not_name_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "node", lambda: "a-host-name-that-must-not-appear")
    assert "a-host-name-that-must-not-appear" not in json.dumps(session())
