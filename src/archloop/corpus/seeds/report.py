"""The report of a seed corpus: what happened to every network of the source."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from archloop.text import as_markdown

PAPER_FUNNEL = (
    ("records", 109_913),
    ("after near-duplicate removal", 1_065),
    ("after conversion", 849),
    ("prompt-code pairs", 1_698),
)
"""Paper, section 3: the seed corpus."""

WHY_DIFFERENT = """\
- The paper starts from records: one a trial of one network, as LEMUR's table had them. Nearly all
  are copies of a network under other hyperparameters. Here each network file counts once.
- nn-dup, which made the paper's 1,065, compares networks of one name prefix only, with names and
  numbers folded, and keeps some near-duplicates of each family; `seeds.view = "normalized"` folds
  too. Here every network is compared with every other, and none above the threshold stays.
- The paper's 849 of 1,065 is a share of 0.797 and nn-dup splits 8 : 1 : 1, so its 216 dropped
  networks look like the dev and test parts (`seeds.split`). Here a network is dropped when it
  breaks the contract, needs modules that no network needs, or does not build.
- The paper says that each network stands under an MNIST and a CIFAR-10 prompt
  (`seeds.variant = "two_prompts"`); the corpus that nn-gpt ships has one full and one infill pair
  of each (`"full_infill"`)."""


@dataclass(frozen=True)
class Dropped:
    """A network that was dropped."""

    name: str
    family: str
    step: str
    reason: str
    like: str | None = None
    """The kept network that it duplicates."""
    error: str | None = None
    """The error line."""


@dataclass
class SeedReport:
    """What happened to every network."""

    steps: list[tuple[str, int]] = field(default_factory=list)
    """(step, networks left after it), in order."""
    records: list[Dropped] = field(default_factory=list)
    """Every dropped network, in the order of the steps."""
    families: Counter[str] = field(default_factory=Counter)
    """Networks in the corpus, by family; narrowed ones as ``family (narrowed)``, edited ones as
    ``family (augmented)``."""
    classes_before: Counter[str] = field(default_factory=Counter)
    """Networks of each structure class before they are balanced; empty: they were not traced."""
    classes: Counter[str] = field(default_factory=Counter)
    """The same after it."""
    edit_pairs: Counter[str] = field(default_factory=Counter)
    """Pairs that teach an edit, by its name."""
    edit_faults: Counter[str] = field(default_factory=Counter)
    """Edited networks that were not used, by edit and reason."""
    pairs: int = 0
    variant: str = ""
    splits: Counter[str] = field(default_factory=Counter)
    """Networks of each split, if split."""
    lemur_records: int | None = None
    """CIFAR-10 trials in the source; only of LEMUR, and puts the paper's counts beside."""

    @property
    def dropped(self) -> Counter[str]:
        """Networks dropped, by reason."""
        return Counter(record.reason for record in self.records)

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values."""
        found: dict[str, Any] = {
            "steps": [{"step": step, "networks": count} for step, count in self.steps],
            "dropped": dict(self.dropped.most_common()),
            "families": dict(self.families.most_common()),
            "classes_before": dict(self.classes_before.most_common()),
            "classes": dict(self.classes.most_common()),
            "edit_pairs": dict(self.edit_pairs.most_common()),
            "edit_faults": dict(self.edit_faults.most_common()),
            "variant": self.variant,
            "pairs": self.pairs,
            "splits": dict(self.splits),
            "records": [asdict(record) for record in self.records],
        }
        if self.lemur_records is not None:
            found["paper"] = [
                {"what": what, "paper": paper, "here": here} for what, paper, here in self._beside()
            ]
        return found

    def to_markdown(self) -> str:
        """The report for reading."""
        lines = ["# Seed corpus", "", "| step | networks left |", "|---|---|"]
        lines += [f"| {step} | {count:,} |" for step, count in self.steps]
        lines += ["", f"Prompt-code pairs ({self.variant}): {self.pairs:,}", ""]
        lines += ["| dropped because | networks |", "|---|---|"]
        lines += [f"| {k} | {n:,} |" for k, n in self.dropped.most_common()]
        lines += ["", "Each dropped network is named in `report.json`.", ""]
        lines += ["| family | networks in the corpus |", "|---|---|"]
        lines += [f"| {as_markdown(k)} | {n:,} |" for k, n in self.families.most_common()]
        if self.classes_before:
            lines += [
                "",
                "| structure class | networks | of these in the corpus |",
                "|---|---|---|",
            ]
            for name, n in self.classes_before.most_common():
                lines.append(f"| {name} | {n:,} | {self.classes[name]:,} |")
        if self.edit_pairs:
            lines += ["", "| pairs that teach an edit | pairs |", "|---|---|"]
            lines += [f"| {name} | {n:,} |" for name, n in self.edit_pairs.most_common()]
        if self.edit_faults:
            lines += ["", "| edited network not used because | networks |", "|---|---|"]
            lines += [f"| {name} | {n:,} |" for name, n in self.edit_faults.most_common()]
        if self.splits:
            lines += ["", "| split | networks |", "|---|---|"]
            lines += [f"| {k} | {n:,} |" for k, n in self.splits.items()]
        if self.lemur_records is not None:
            lines += ["", "## Beside the paper", "", "| | paper | here |", "|---|---|---|"]
            lines += [f"| {what} | {paper:,} | {here} |" for what, paper, here in self._beside()]
            lines += ["", WHY_DIFFERENT]
        return "\n".join(lines) + "\n"

    def _beside(self) -> list[tuple[str, int, str]]:
        counts = dict(self.steps)
        here = (
            f"{self.lemur_records:,} CIFAR-10 trials of {counts['read']:,} networks",
            f"{counts['not a near-duplicate']:,}",
            f"{sum(self.families.values()):,}",
            f"{self.pairs:,}",
        )
        return [(what, n, own) for (what, n), own in zip(PAPER_FUNNEL, here, strict=True)]
