"""Counts of what the tests did, shown at the end of a run."""

from __future__ import annotations

from collections import Counter

# The keys are "what: kind" or "what". tests/conftest.py prints the counts.
COUNTS: Counter[str] = Counter()
# Figures of the simulated fleets, one line each.
FIGURES: list[str] = []


def count(what: str, kind: str = "", *, by: int = 1) -> None:
    """Count something that was done to the program."""
    COUNTS[f"{what}: {kind}" if kind else what] += by


def figure(text: str) -> None:
    """Record a figure to show."""
    FIGURES.append(text)


def counted() -> tuple[dict[str, int], list[str]]:
    """Return all counts, in a form that can be sent to another process."""
    return dict(COUNTS), FIGURES


def take_over(counts: tuple[dict[str, int], list[str]] | None) -> None:
    """Add the counts of another process."""
    if counts is not None:
        COUNTS.update(counts[0])
        FIGURES.extend(counts[1])


def lines() -> list[str]:
    """Return all counts, one line per kind."""
    grouped: dict[str, list[str]] = {}
    for name, number in sorted(COUNTS.items(), key=lambda item: (-item[1], item[0])):
        what, _, kind = name.partition(": ")
        grouped.setdefault(what, []).append(f"{kind} {number}".strip())
    totals = {
        what: sum(number for name, number in COUNTS.items() if name.partition(": ")[0] == what) for what in grouped
    }
    return [
        f"{what}: {totals[what]}" + (f" ({', '.join(kinds)})" if len(kinds) > 1 else "")
        for what, kinds in sorted(grouped.items())
    ] + FIGURES
