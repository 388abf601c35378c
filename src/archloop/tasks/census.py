"""What became of every image of a task, in one line: nothing is lost in silence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Self

from archloop.tasks.source import Skipped

_NAMED = 3
"""Files named for each reason; the others are counted."""
_CLASSES = 10
"""Most classes that are counted one by one."""
_MOST = 60
"""Most characters of a name; of a longer one the end tells files apart."""


@dataclass(frozen=True)
class Census:
    """What was found besides the images, while a task was opened and decoded."""

    skipped: tuple[Skipped, ...] = ()
    constant: tuple[Skipped, ...] = ()
    """Images of one colour from edge to edge; they are used."""
    notes: tuple[str, ...] = ()
    test_problem: str | None = None
    """Why the test split cannot be used, where there is one."""

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """Read :meth:`to_json`'s."""
        return cls(
            tuple(Skipped(**one) for one in values["skipped"]),
            tuple(Skipped(**one) for one in values["constant"]),
            tuple(values["notes"]),
            values["test_problem"],
        )

    def line(self) -> str:
        """Everything but the counts of the images that are used; empty where all is well."""
        parts = []
        if self.skipped:
            reasons: dict[str, list[Skipped]] = {}
            for one in self.skipped:
                reasons.setdefault(one.reason, []).append(one)
            counted = "; ".join(_counted(reason, found) for reason, found in reasons.items())
            parts.append(f"skipped {len(self.skipped)}: {counted}")
        if self.constant:
            parts.append(_counted("constant", self.constant) + ", used all the same")
        parts += self.notes
        if self.test_problem:
            parts.append(self.test_problem)
        return shown("; ".join(parts))


@dataclass
class Tally:
    """Counts while images are decoded."""

    skipped: list[Skipped] = field(default_factory=list)
    constant: list[Skipped] = field(default_factory=list)
    frames: int = 0
    """Images of several frames."""
    transparent: int = 0
    """Images that were composed on a background."""
    copies: int = 0
    """Images equal to an earlier one of the same class."""
    contradictions: int = 0
    """Images equal to an earlier one of another class."""
    leaks: int = 0
    """Test images equal to a training image."""
    lines: list[str] = field(default_factory=list)
    """What else there is to say."""
    seen: dict[bytes, tuple[str, int]] = field(default_factory=dict)
    """Split and label of each image by its content."""

    def copy(self) -> Self:
        """One to count on with, whose counts may be dropped."""
        return replace(
            self,
            skipped=[*self.skipped],
            constant=[*self.constant],
            lines=[*self.lines],
            seen={**self.seen},
        )

    def compare(self, content: bytes, split: str, label: int) -> None:
        """Count an image that was there before."""
        before = self.seen.get(content)
        if before is None:
            self.seen[content] = split, label
            return
        if before[0] != split:
            self.leaks += 1
        elif before[1] != label:
            self.contradictions += 1
        else:
            self.copies += 1

    def notes(self) -> list[str]:
        """A line on each count that is not zero."""
        lines = [*self.lines]
        if self.transparent:
            lines.append(f"{self.transparent} transparent, composed on white or black")
        if self.frames:
            lines.append(f"{self.frames} with several frames, of which the first is used")
        if self.copies:
            lines.append(f"{self.copies} equal to another image of their class")
        if self.contradictions:
            lines.append(f"{self.contradictions} equal to an image of another class")
        if self.leaks:
            lines.append(f"{self.leaks} of the test split equal to a training image")
        return lines


def class_counts(names: Sequence[str], labels: Iterable[int]) -> str:
    """How many images each class has, or the least and the most where there are many classes."""
    counts = Counter(labels)
    if len(names) > _CLASSES:
        return f"{min(counts.values())} to {max(counts.values())} each"
    return ", ".join(f"{_short(name)} {counts[label]}" for label, name in enumerate(names))


def _counted(reason: str, found: Sequence[Skipped]) -> str:
    classes = Counter(one.class_name for one in found if one.class_name is not None)
    by_class = ", ".join(f"{_short(name)} {n}" for name, n in classes.most_common(_CLASSES))
    if len(classes) > _CLASSES:
        by_class += f" and {len(classes) - _CLASSES} classes more"
    listed = ", ".join(_short(one.where) for one in found[:_NAMED])
    more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    return f"{reason} {len(found)} ({by_class}{': ' if by_class else ''}{listed}{more})"


def _short(name: str) -> str:
    return name if len(name) <= _MOST else f"...{name[-_MOST:]}"


def shown(text: str) -> str:
    """The text on one line; file names can hold anything."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
