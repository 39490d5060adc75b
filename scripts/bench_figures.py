"""The figures of scripts/bench: compare them with their limits, and format them as a table."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LIMITS = Path(__file__).with_name("bench.toml")


@dataclass(frozen=True, slots=True)
class Figure:
    """One row of the table.

    Attributes:
        name: name of the measurement, as in bench.toml.
        text: the result with its unit.
        reference: what to compare the result with. It was measured in the same run, or the documentation promises it.
        value: the number that is compared with the limits; None for information without limits.
    """

    name: str
    text: str
    reference: str = ""
    value: float | None = None


def read_limits() -> dict[str, Any]:
    """Read the limits of each figure from bench.toml."""
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
    """Return the text of docs/bench.md: an introduction, the table, and the notes below it."""
    return (
        "# Benchmarks\n\n"
        "For developers who compare a change with the current performance.\n\n"
        "`scripts/bench --save docs/bench.md` writes the table on this page. It runs the real commands against\n"
        "simulators on loopback and prints medians. Times depend on the machine and its load, so compare each result\n"
        "with its reference. The runs of a result and of its reference alternate. CPU depends less on the load than\n"
        "elapsed time. A CPU ratio such as 1.2 x compares the shortest runs.\n\n"
        f"`scripts/bench.toml` has the limits and goals.\n\n{table(figures)}\n{notes}"
    )


def outside_limits(figures: Iterable[Figure]) -> list[str]:
    """Return a message for each figure outside its limits."""
    known = read_limits()
    return [
        f"outside its limits: {figure.name}: {figure.value:.2f}, expected {{:g}} to {{:g}}".format(*entry["limits"])
        for figure in figures
        if figure.value is not None and (entry := known.get(figure.name))
        if not entry["limits"][0] <= figure.value <= entry["limits"][1]
    ]
