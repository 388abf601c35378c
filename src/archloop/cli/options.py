"""Options that several commands share."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from archloop.config import RunConfig

Command = TypeVar("Command", bound=Callable[..., Any])


class FilePath(click.Path):
    """A file or folder; an empty name is a mistake, as of a variable that is not set."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path."""
        return super().convert(not_empty(ctx, param, value), param, ctx)


def not_empty(ctx: click.Context | None, param: click.Parameter | None, value: Any) -> Any:
    """Refuse an empty text; also a callback of options."""
    if value == "":
        raise click.BadParameter("is empty; expected a name", ctx, param)
    return value


def set_option(command: Command) -> Command:
    """``--set KEY=VALUE``, any number of times."""
    return click.option(
        "--set",
        "overrides",
        metavar="KEY=VALUE",
        multiple=True,
        help="Set a configuration key, for example --set loop.cycles=3; 'none' unsets.",
    )(command)


def config_option(command: Command) -> Command:
    """``--config``: where the other keys come from."""
    return click.option(
        "--config",
        "source",
        default="embedded",
        show_default=True,
        metavar="PRESET|FILE",
        help="Preset or TOML file that the other keys come from.",
    )(command)


def configuration(source: str | None, run_dir: Path, overrides: tuple[str, ...]) -> RunConfig:
    """The named configuration; without a name, what the run directory began with."""
    from archloop.config import load_config, resolve_with
    from archloop.store.run_dir import RunDir

    begun = RunDir(run_dir)
    if source is None and begun.config.is_file():
        return resolve_with(begun.read_config().model_dump(mode="json"), overrides)
    return load_config(source, overrides)


def json_option(command: Command) -> Command:
    """``--json``: machine-readable output."""
    return click.option(
        "--json", "as_json", is_flag=True, help="One JSON object a line on stdout."
    )(command)


@contextmanager
def resumable() -> Iterator[None]:
    """Around work that is kept when it is interrupted, which is said then."""
    try:
        yield
    except KeyboardInterrupt:
        click.echo(err=True)  # ends the line of the terminal's ^C, as click does for other commands
        raise click.Abort("run the same command again to resume") from None


def echo_text(text: str, *, err: bool = False) -> None:
    """Text that may be of others, a network's or a server's: a terminal obeys none of it."""
    from archloop.text import printable

    # Named, as click would write UTF-8 to a stream whose encoding is ASCII.
    click.echo(printable(text), file=sys.stderr if err else sys.stdout)


def echo_json(row: Mapping[str, Any]) -> None:
    """One JSON object on a line of stdout."""
    click.echo(json.dumps(row, allow_nan=False))
