"""A run directory: where everything lies, and the public way to read it (:class:`Run`)."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self

from archloop.config import RunConfig, config_digest, resolve_stored
from archloop.errors import ConfigError, RunLockedError, UsageError
from archloop.progress import Progress, RunProgress
from archloop.store.store import Store
from archloop.types import Candidate, CycleStats

if TYPE_CHECKING:
    import pandas as pd

FINISHED = "finished_at"
"""Meta key in the store: when the run ended as planned; absent before."""

SESSIONS = "sessions"
"""Meta key in the store: :func:`archloop.machine.session.session` of each start of the run."""

MEASURING_KEY = "measuring_key"
"""Meta key in the store: the secret of the run's measurements, in hexadecimal digits."""

PINNED = "pinned"
"""Meta key in the store: ``task`` (the one in use), and the digests that are fixed for the run."""

CORPORA = "corpora"
"""Meta key in the store: the SHA-256 of each corpus of the run, by its file's name."""

TASK_SIZE = "task_size"
"""Meta key in the store: ``shape`` of what networks get, and number of ``classes``."""

SPENT = "spent"
"""Meta key in the store: :class:`archloop.llm.spending.Spent` of a run whose LLM is on a
server; absent elsewhere."""

State = Literal["running", "finished", "interrupted"]

_LOCK_SECONDS = 2.0
"""How long a starting run waits for the lock: :meth:`Run.state` holds it for an instant."""


@dataclass(frozen=True)
class RunDir:
    """The paths of a run directory; none of them has to exist."""

    root: Path

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.root / "config.json"

    @property
    def database(self) -> Path:
        """The store."""
        return self.root / "run.db"

    @property
    def lock_file(self) -> Path:
        """Locked by the process that works on the run."""
        return self.root / "run.lock"

    @property
    def progress(self) -> Path:
        """The last snapshot of a run that is under way, or was interrupted."""
        return self.root / "progress.json"

    def corpus(self, cycle: int) -> Path:
        """The corpus that the adapter of a cycle is fine-tuned on."""
        return self.root / "corpus" / f"cycle_{cycle:02d}.jsonl"

    def adapter(self, cycle: int) -> Path:
        """The folder of the adapter that generates in a cycle."""
        return self.root / "adapters" / f"cycle_{cycle:02d}"

    def candidates(self, cycle: int) -> Path:
        """The folder of a cycle's candidates as ``.py`` files."""
        return self.root / "candidates" / f"cycle_{cycle:02d}"

    def candidate(self, cycle: int, id: str) -> Path:  # noqa: A002
        """The file of one of them."""
        return self.candidates(cycle) / f"{id}.py"

    def configuration(self) -> str:
        """Digest of the configuration as it is stored: a key that came later does not change it."""
        return config_digest(json.loads(self.config.read_text("utf-8")))

    def read_config(self) -> RunConfig:
        """The configuration that the run began with.

        Raises:
            UsageError: The file is damaged, or of another version of archloop.
        """
        try:
            return resolve_stored(json.loads(self.config.read_text("utf-8")))
        except (ValueError, RecursionError, ConfigError) as error:
            raise UsageError(f"{self.config}: not a run's configuration: {error}") from None

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Take the run for this process, until the end of the ``with`` statement.

        Raises:
            RunLockedError: Another process is working on the run.
        """
        from filelock import FileLock, Timeout

        self.root.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.lock_file)
        try:
            lock.acquire(timeout=_LOCK_SECONDS)
        except Timeout:
            raise RunLockedError(f"{self.root}: another process is working on this run") from None
        try:
            yield
        finally:
            lock.release()

    def is_locked(self) -> bool:
        """Whether a process is working on the run now."""
        from filelock import FileLock, Timeout

        if not self.lock_file.is_file():
            return False
        try:
            with FileLock(self.lock_file, timeout=0):
                return False
        except Timeout:
            return True
        except OSError:  # a read-only disk or another user's run: nobody here can be writing it
            return False


class Run:
    """A run as others read it, while it runs or later. Use :meth:`open`."""

    def __init__(self, paths: RunDir, config: RunConfig, store: Store) -> None:
        self.paths = paths
        self.config = config
        self.store = store

    @classmethod
    def open(cls, directory: str | Path) -> Self:
        """Open a run directory for reading.

        Raises:
            UsageError: The directory is no run, or of another version of archloop.
        """
        paths = RunDir(Path(directory))
        if not paths.config.is_file() or not paths.database.is_file():
            raise UsageError(f"{directory}: no run here (a run has config.json and run.db)")
        return cls(paths, paths.read_config(), Store(paths.database, read_only=True))

    def close(self) -> None:
        """Let go of the database."""
        self.store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def candidates(self) -> pd.DataFrame:
        """One row a candidate, the best first, with the columns of its public JSON and its code.

        The best have the highest first-epoch accuracy; those without one follow, and what is equal
        is in (cycle, index) order.
        """
        import pandas as pd

        def place(candidate: Candidate) -> float:
            accuracy = candidate.first_epoch_accuracy
            return 1.0 if accuracy is None else -accuracy

        found = sorted(self.store.candidates(), key=place)
        rows = [candidate.to_json() | {"code": candidate.code} for candidate in found]
        hidden = {"index", "graph"}
        columns = [field.name for field in fields(Candidate) if field.name not in hidden]
        return pd.DataFrame(rows, columns=[*columns, "graph_hash"])

    def cycles(self) -> list[CycleStats]:
        """The statistics of the committed cycles, in order."""
        return self.store.cycles()

    def pinned(self) -> dict[str, str]:
        """What is fixed for the run: ``task`` and digests; empty before the first cycle."""
        found: dict[str, str] = self.store.get_meta(PINNED, {})
        return found

    def task(self) -> str:
        """The task in use, where the configuration says ``auto`` too."""
        return self.pinned().get("task", self.config.task.name)

    def progress(self) -> tuple[Progress, float] | None:
        """The last snapshot of the run that was kept, and its age in seconds; ``None``: none."""
        try:
            kept = json.loads(self.paths.progress.read_text("utf-8"))
            at, whole = float(kept.pop("at")), kept.pop("run")
            run = None if whole is None else RunProgress(**whole)
            return Progress(**kept, run=run), max(0.0, time.time() - at)
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None  # there is none, or it is another version's

    def state(self) -> State:
        """``running`` while a process holds the run, else ``finished`` or ``interrupted``."""
        if self.paths.is_locked():
            return "running"
        return "finished" if self.store.get_meta(FINISHED) else "interrupted"
