"""What a run found out: tables for people (Markdown, terminal) and for programs (CSV, JSON)."""

from archloop.report.document import write_report
from archloop.report.status import format_cycle_table, spending_line, status_json

__all__ = ["format_cycle_table", "spending_line", "status_json", "write_report"]
