"""What a run found out: tables for people (Markdown, terminal) and for programs (CSV, JSON)."""

from archloop.report.document import write_report
from archloop.report.status import (
    current_line,
    format_cycle_table,
    format_cycles,
    outcome_counts,
    progress_lines,
    spending_line,
    spending_of,
    status_json,
)

__all__ = [
    "current_line",
    "format_cycle_table",
    "format_cycles",
    "outcome_counts",
    "progress_lines",
    "spending_line",
    "spending_of",
    "status_json",
    "write_report",
]
