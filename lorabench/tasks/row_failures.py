"""Rows of a table of which an artifact could not be computed, with the reason from its log."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from lorabench.tasks.plan import STAGES, Plan
from lorabench.tasks.rows import Row, name_of

FAILED = "failed"  # folder of the logs, in the run folder


def failures_of(plan: Plan, logs: Path) -> dict[str, str]:
    """Return the reasons of the rows that failed, by name.

    Args:
        plan: The plan, after `make` was called with its artifacts.
        logs: Folder of the logs of failures.
    """
    if not logs.is_dir():
        return {}
    return {name_of(row): why for row in plan.rows if (why := first_failure(plan, row, logs))}


def first_failure(plan: Plan, row: Row, logs: Path) -> str | None:
    """Return the first artifact of a row that failed, with the reason and its log; None if all succeeded."""
    own = replace(plan, rows=[row])
    for stage in STAGES:
        for each in own.artifacts(stage):
            log = logs / f"{each.key}.txt"
            if log.is_file():
                why = reason(log.read_text(encoding="utf-8"))
                return f"{stage} of {each.name}: {why} ({log.relative_to(logs.parent)})"
    return None


def without_failed(plan: Plan, failed: dict[str, str]) -> Plan:
    """Return the plan without the rows that failed."""
    return replace(plan, rows=[row for row in plan.rows if name_of(row) not in failed])


def reason(log: str) -> str:
    """Return the last line of a log that is not empty."""
    return next((line for line in reversed(log.splitlines()) if line.strip()), "no reason given")
