"""The exceptions that archloop raises on purpose.

A bad network is data: it ends in an :class:`~archloop.types.Outcome` and is never raised. Only
faults of the user's input, of the machine or of archloop itself are exceptions, and each has one
line that says what is wrong, where, and what would be right.
"""

from __future__ import annotations


class ArchloopError(Exception):
    """Base of every error archloop raises on purpose; the command line exits with code 1."""


class UsageError(ArchloopError):
    """Bad usage, configuration or input data; the command line exits with code 2."""


class ConfigError(UsageError):
    """A configuration key is unknown, has the wrong type or an impossible value."""


class AssetError(ArchloopError):
    """A pinned download is missing, cannot be fetched, or does not match its SHA-256."""


class MissingExtraError(UsageError):
    """An optional dependency is not installed; the message names the install command."""


class IsolationError(UsageError):
    """The requested isolation level is not available on this machine."""


class DivergedError(ArchloopError):
    """A fine-tune made the LLM worse than it was; it left no adapter."""


class NothingToLearnError(UsageError):
    """No pair of a fine-tune's corpus can be trained on."""


class CapReachedError(ArchloopError):
    """A cap on tokens or money is reached; the run can be resumed after the cap is raised."""


class RunLockedError(UsageError):
    """Another process is working on this run directory."""


class SandboxError(ArchloopError):
    """The sandbox itself failed (not the candidate in it)."""
