"""Figures and their limits, as a table and as a bar chart."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

LIMITS = Path(__file__).with_name("bench.toml")

# Dimensions of the chart in pixels.
_WIDTH, _LEFT, _ROW, _BAR = 760, 300, 26, 16


@dataclass(frozen=True, slots=True)
class Figure:
    """One row of the table.

    Attributes:
        name: name of the measurement, as in bench.toml.
        text: the result with its unit.
        value: the number that is compared with the limits; None if there are none, or if it was not measured.
    """

    name: str
    text: str
    value: float | None = None


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar of the chart. The bars of a group have the same scale."""

    group: str
    name: str
    value: float
    text: str


@dataclass(frozen=True, slots=True)
class Limits:
    """The range of a figure.

    Attributes:
        lower, upper: the expected range.
        goal: the design goal, or "" if there is none.
    """

    lower: float
    upper: float
    goal: str = ""


def read_limits() -> dict[str, Limits]:
    """Read the limits of each figure from bench.toml."""
    return {
        name: Limits(lower=entry["limits"][0], upper=entry["limits"][1], goal=entry.get("goal", ""))
        for name, entry in tomllib.loads(LIMITS.read_text()).items()
    }


def table(figures: Iterable[Figure]) -> str:
    """Return a Markdown table of the figures with their limits and goals."""
    known = read_limits()
    lines = ["| measurement | result | limits | goal |", "|---|---|---|---|"]
    for figure in figures:
        entry = known.get(figure.name)
        limits = f"{entry.lower:g} to {entry.upper:g}" if entry and figure.value is not None else ""
        lines.append(f"| {figure.name} | {figure.text} | {limits} | {entry.goal if entry else ''} |")
    return "\n".join(lines)


def page(figures: Iterable[Figure], *, chart_file: str) -> str:
    """Return docs/bench.md: the table, the chart, and how to read both."""
    return (
        "# Benchmarks\n\n"
        "For developers who compare a change with the current performance.\n\n"
        f"`scripts/bench --save docs/{chart_file}` writes this page. It runs the real commands against simulators on\n"
        "loopback and prints medians. Times depend on the machine and its load, so compare the ratios.\n"
        "`scripts/bench.toml` has the limits.\n\n"
        f"![Start-up times, and cleanup by latency]({chart_file})\n\n{table(figures)}\n"
    )


def outside_limits(figures: Iterable[Figure]) -> list[str]:
    """Return a message for each figure outside its limits."""
    known = read_limits()
    return [
        f"outside its limits: {figure.name}: {figure.value:.2f}, expected {entry.lower:g} to {entry.upper:g}"
        for figure in figures
        if figure.value is not None
        and (entry := known.get(figure.name))
        and not entry.lower <= figure.value <= entry.upper
    ]


def chart(bars: Sequence[Bar]) -> str:
    """Return the bars as SVG in colours for light and dark backgrounds."""
    y = 8
    parts = []
    for group in dict.fromkeys(bar.group for bar in bars):
        members = [bar for bar in bars if bar.group == group]
        longest = max(bar.value for bar in members)
        parts.append(f'<text x="8" y="{y + _BAR}" font-weight="bold">{escape(group)}</text>')
        for bar in members:
            y += _ROW
            length = (_WIDTH - _LEFT - 130) * bar.value / longest
            parts.append(
                f'<text x="{_LEFT - 8}" y="{y + 13}" text-anchor="end">{escape(bar.name)}</text>'
                f'<rect x="{_LEFT}" y="{y}" width="{length:.0f}" height="{_BAR}" fill="#4878a8"/>'
                f'<text x="{_LEFT + length + 6:.0f}" y="{y + 13}">{escape(bar.text)}</text>'
            )
        y += _ROW + 14
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{y}" viewBox="0 0 {_WIDTH} {y}" '
        'font-family="sans-serif" font-size="13" fill="#808080">\n' + "\n".join(parts) + "\n</svg>\n"
    )
