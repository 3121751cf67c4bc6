"""What the user sees of the doctor: a table.

Scope: rich; nothing is judged here.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table

from memo.doctor.contracts import Finding, Verdict

_STYLES = {Verdict.OK: "green", Verdict.NOTE: "yellow", Verdict.WARNING: "bold red"}


def findings_table(findings: Sequence[Finding]) -> Table:
    """A row for each finding, its advice beside it."""
    table = Table(title="memo doctor", title_justify="left")
    for name in ("what", "found", "verdict", "advice"):
        table.add_column(name, overflow="fold")
    for finding in findings:
        table.add_row(
            escape(finding.name),
            escape(finding.value),
            f"[{_STYLES[finding.verdict]}]{finding.verdict}[/]",
            escape(finding.advice),
        )
    return table


def summary(findings: Sequence[Finding]) -> str:
    """One line: how many things are to be looked at."""
    warnings = _counted(findings, Verdict.WARNING)
    notes = _counted(findings, Verdict.NOTE)
    if warnings:
        return ", ".join(filter(None, (warnings, notes)))
    return "; ".join(filter(None, ("nothing stands in the way", notes)))


def _counted(findings: Sequence[Finding], verdict: Verdict) -> str:
    count = sum(finding.verdict is verdict for finding in findings)
    return f"{count} {verdict}{'s' if count > 1 else ''}" if count else ""
