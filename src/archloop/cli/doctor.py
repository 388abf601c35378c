"""``archloop doctor``."""

from __future__ import annotations

import sys

import click

from archloop.cli.options import echo_text, json_option, set_option


@click.command("doctor")
@click.argument("source", default="embedded", metavar="[CONFIG.toml|PRESET]")
@set_option
@json_option
def doctor_command(source: str, overrides: tuple[str, ...], as_json: bool) -> None:
    """What this machine lacks for a configuration, the sandbox attacked included.

    Exit code 1 if something needed is missing.
    """
    from dataclasses import asdict

    from archloop.cli.options import echo_json
    from archloop.config import load_config
    from archloop.doctor.diagnose import diagnose

    checks = diagnose(load_config(source, overrides))
    for check in checks:
        if as_json:
            echo_json(asdict(check))
            continue
        mark = {True: "ok     ", False: "MISSING", None: "unknown"}[check.ok]
        needed = f" (needed: {check.needed})" if check.needed and check.ok is not True else ""
        echo_text(f"{mark} {check.name}: {check.detail}{needed}")
    if any(check.ok is False for check in checks):
        sys.exit(1)
