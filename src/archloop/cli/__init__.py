"""The command line: parse first, import engines afterwards; one clear line for a fault.

Exit codes: 0 done, 1 the run failed, 2 bad usage or configuration, or a file that cannot be read or
written, 130 interrupted (143 by SIGTERM, as batch systems and containers send it). With ``--json``
stdout holds one JSON object a line and nothing else; progress and messages go to stderr.
"""

from __future__ import annotations

import io
import logging
import os
import signal
import sys
from types import FrameType
from typing import Any, TextIO

import click

from archloop import __version__
from archloop.cli.cache import cache_command
from archloop.cli.corpus import corpus_group
from archloop.cli.doctor import doctor_command
from archloop.cli.llm import finetune_command, generate_command
from archloop.cli.networks import evaluate_command, novelty_command
from archloop.cli.options import echo_text
from archloop.cli.runs import report_command, run_command, status_command
from archloop.cli.show import show_command
from archloop.errors import ArchloopError, UsageError
from archloop.platforms import refuse_windows

logger = logging.getLogger(__name__)

_UNKNOWN = "backslashreplace"
"""What becomes of a character that the encoding of a stream lacks: nothing ends for it."""


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="archloop")
@click.option("-v", "--verbose", count=True, help="Log more to stderr; twice for everything.")
def cli(verbose: int) -> None:
    """A code LLM in a closed loop that designs neural networks and is trained on what worked.

    Start with: archloop run demo
    """
    refuse_windows()
    level = (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)]
    logging.basicConfig(
        level=level, format="%(levelname)s %(name)s: %(message)s", handlers=[_Log()]
    )
    for name in ("httpx", "filelock", "urllib3", "datasets", "fsspec"):
        logging.getLogger(name).setLevel(logging.WARNING)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    # A bar of another library would tear the live lines.
    for name in ("HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS"):
        os.environ.setdefault(name, "1")
    os.environ.setdefault("TQDM_DISABLE", "1")


for command in (
    run_command,
    status_command,
    show_command,
    report_command,
    corpus_group,
    generate_command,
    evaluate_command,
    novelty_command,
    finetune_command,
    doctor_command,
    cache_command,
):
    cli.add_command(command)


class _Log(logging.StreamHandler[TextIO]):
    """Writes to what stderr is at the time: a live line puts something in its place."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line, above the live one if there is one."""
        self.setStream(sys.stderr)
        super().emit(record)


class _Stderr(io.FileIO):
    """Stderr without faults: a failed write to stderr must not abort a run."""

    def write(self, data: Any) -> int:
        """Write what can be written; a failure is dropped, as there is nowhere to report it."""
        try:
            written = super().write(data)
        except OSError:
            written = None
        return memoryview(data).nbytes if written is None else written


class _Stdout(io.FileIO):
    """Stdout with its faults dealt with here: click and rich make code 1 of a reader that left."""

    def write(self, data: Any) -> int:
        """Write; a reader that left (for example `| head`) has been delivered what it asked for."""
        try:
            return super().write(data)
        except OSError as error:
            # What is still in the buffers goes nowhere, or the last flush would fail once more.
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
            if isinstance(error, BrokenPipeError):
                sys.exit(0)
            raise OSError(error.errno, error.strerror, "stdout") from None


def _open_missing_streams() -> None:
    """Put the null device where stdin, stdout or stderr was closed.

    Else the next file opened would have its number, and a process started later would take a socket
    of the sandbox for its stdin.
    """
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free, so this one


def _one_line(error: click.ClickException) -> str:
    """What click found wrong with the usage, and where to read what would be right."""
    said = " ".join(error.format_message().split()).removesuffix(".")
    said = said[:1].lower() + said[1:]
    context = error.ctx if isinstance(error, click.UsageError) else None
    return f"{said}; see '{context.command_path} --help'" if context else said


def main() -> None:
    """The ``archloop`` command."""
    _open_missing_streams()
    ended_by: int = signal.SIGINT

    def terminate(number: int, _frame: FrameType | None) -> None:
        nonlocal ended_by
        ended_by = number
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, terminate)
    if sys.stdout:  # None where the process was started without one
        raw = io.BufferedWriter(_Stdout(sys.stdout.fileno(), "w", closefd=False))
        sys.stdout = io.TextIOWrapper(raw, sys.stdout.encoding, _UNKNOWN)
    if sys.stderr:
        err = io.BufferedWriter(_Stderr(sys.stderr.fileno(), "w", closefd=False))
        sys.stderr = io.TextIOWrapper(err, sys.stderr.encoding, _UNKNOWN, line_buffering=True)
    try:
        cli.main(standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(2)
    except click.ClickException as error:
        echo_text(f"archloop: {_one_line(error)}", err=True)
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt) as error:
        echo_text("; ".join(["interrupted", *map(str, error.args)]), err=True)
        sys.exit(128 + ended_by)
    except UsageError as error:
        echo_text(f"archloop: {error}", err=True)
        sys.exit(2)
    except ArchloopError as error:
        echo_text(f"archloop: {error}", err=True)
        sys.exit(1)
    except OSError as error:
        logger.debug("a file or stream failed", exc_info=True)
        echo_text(f"archloop: {error}", err=True)
        sys.exit(2)
