"""Counts of what the tests simulated and checked, and measurements. pytest prints them at the end of a run."""

from __future__ import annotations

from collections import Counter

COUNTS: Counter[str] = Counter()
"""Counts by "category: kind", or by "category" if it has no kinds."""

MEASUREMENTS: list[str] = []
"""The measurements. Each is a line of text."""


def add_to_count(category: str, kind: str = "", *, by: int = 1) -> None:
    """Add to a count."""
    COUNTS[f"{category}: {kind}" if kind else category] += by


def add_measurement(text: str) -> None:
    """Add a line to the end of the report."""
    MEASUREMENTS.append(text)


def snapshot() -> tuple[dict[str, int], list[str]]:
    """Return all counts and measurements, in a form that can be sent to another process."""
    return dict(COUNTS), MEASUREMENTS


def merge(counts: dict[str, int], measurements: list[str]) -> None:
    """Add the counts and measurements of another process."""
    COUNTS.update(counts)
    MEASUREMENTS.extend(measurements)


def lines() -> list[str]:
    """Return the report: a line per category with its total and any kinds, and the measurements."""
    totals: Counter[str] = Counter()
    kinds: dict[str, list[str]] = {}
    for name, number in sorted(COUNTS.items(), key=lambda item: (-item[1], item[0])):
        category, _, kind = name.partition(": ")
        totals[category] += number
        kinds.setdefault(category, []).append(f"{kind} {number}")
    return [
        f"{category}: {total}" + (f" ({', '.join(kinds[category])})" if len(kinds[category]) > 1 else "")
        for category, total in sorted(totals.items())
    ] + MEASUREMENTS
