"""Compare the results of scripts/bench with their limits, and format them as a table for docs/bench.md."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LIMITS = Path(__file__).with_name("bench.toml")


@dataclass(frozen=True, slots=True)
class Figure:
    """A result, which is one row of the table.

    Attributes:
        name: the name of the measurement, as in bench.toml.
        text: the result with its unit.
        reference: a value to compare the result with, which was measured in the same run or is promised in the docs.
        value: the number that is compared with the limits. It is None for a row that has no limits.
    """

    name: str
    text: str
    reference: str = ""
    value: float | None = None


def read_limits() -> dict[str, Any]:
    """Return the content of bench.toml: the limits and the goal of each figure, by the figure's name."""
    return tomllib.loads(LIMITS.read_text())


def table(figures: Iterable[Figure]) -> str:
    """Return a Markdown table of the figures with their references, limits and goals."""
    known = read_limits()
    lines = ["| measurement | result | reference | limits | goal |", "|---|---|---|---|---|"]
    for figure in figures:
        entry = known.get(figure.name, {})
        limits = "{:g} to {:g}".format(*entry["limits"]) if entry and figure.value is not None else ""
        lines.append(f"| {figure.name} | {figure.text} | {figure.reference} | {limits} | {entry.get('goal', '')} |")
    return "\n".join(lines)


def page(figures: Iterable[Figure], notes: str) -> str:
    """Return the text of docs/bench.md: an introduction, the table, and the notes, which were written by hand."""
    return (
        "# Benchmarks\n\n"
        "Read this page if you want to compare the performance of a change with the current performance.\n\n"
        "`scripts/bench --save` writes the table on this page. It runs the real commands against simulators\n"
        "on loopback, and the table contains medians. Times depend on the machine and its load, so compare\n"
        "each result with the reference in its row. The runs for a result and for its reference alternate. CPU time\n"
        "depends less on the load than elapsed time. A ratio of CPU times, such as 1.2 x, compares the shortest run\n"
        "for the result with the shortest run for the reference.\n\n"
        "`scripts/bench.toml` has the goals (desired results) and the limits outside of which a result shows "
        f"changed performance.\n\n{table(figures)}\n{notes}"
    )


def outside_limits(figures: Iterable[Figure]) -> list[str]:
    """Return a message for each figure outside its limits."""
    known = read_limits()
    return [
        f"outside its limits: {figure.name}: {figure.value:.2f}, expected {low:g} to {high:g}"
        for figure in figures
        if figure.value is not None and (entry := known.get(figure.name))
        for low, high in [entry["limits"]]
        if not low <= figure.value <= high
    ]
