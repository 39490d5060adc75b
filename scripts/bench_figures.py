"""What was measured, beside what is expected of it: as a table, and as a picture."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

EXPECTED = Path(__file__).with_name("bench.toml")

# Of the picture, in pixels.
_WIDTH, _LEFT, _ROW, _BAR = 760, 300, 26, 16


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the table.

    Attributes:
        what: what was measured; the name of its band.
        text: the figure, with its unit.
        value: what its band is about; None = it has none, or was not measured.
    """

    what: str
    text: str
    value: float | None = None


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar of the picture; bars of one group have one scale."""

    group: str
    what: str
    value: float
    text: str


@dataclass(frozen=True, slots=True)
class Expected:
    """What a figure should be.

    Attributes:
        least, most: outside of these, something changed; machines are noisy, so they are wide.
        goal: what was set out for; "" = nothing was.
    """

    least: float
    most: float
    goal: str = ""


def expected() -> dict[str, Expected]:
    """What each figure should be, from the one file that says so."""
    return {
        what: Expected(least=entry["band"][0], most=entry["band"][1], goal=entry.get("goal", ""))
        for what, entry in tomllib.loads(EXPECTED.read_text()).items()
    }


def table(figures: Iterable[Figure]) -> str:
    """Every figure, what is expected of it, and what it was to reach."""
    known = expected()
    lines = ["| what | figure | band | goal |", "|---|---|---|---|"]
    for figure in figures:
        entry = known.get(figure.what)
        band = f"{entry.least:g} to {entry.most:g}" if entry and figure.value is not None else ""
        lines.append(f"| {figure.what} | {figure.text} | {band} | {entry.goal if entry else ''} |")
    return "\n".join(lines)


def page(figures: Iterable[Figure], *, picture: str) -> str:
    """The table as a page, with the picture and how to read both."""
    return (
        "# Figures\n\n"
        f"Printed by `scripts/bench --save docs/{picture}`: the real commands against stand-ins on "
        "loopback, medians of one run.\n"
        "Times are a machine's own and grow when it is busy; what compares is the ratios. "
        "`scripts/bench.toml` has the bands.\n\n"
        f"![start-up, and cleanup by latency]({picture})\n\n{table(figures)}\n"
    )


def strays(figures: Iterable[Figure]) -> list[str]:
    """A line for each figure outside its band."""
    known = expected()
    return [
        f"left its band: {figure.what}: {figure.value:.2f} is not {entry.least:g} to {entry.most:g}"
        for figure in figures
        if figure.value is not None
        and (entry := known.get(figure.what))
        and not entry.least <= figure.value <= entry.most
    ]


def picture(bars: Sequence[Bar]) -> str:
    """The bars as SVG, readable on a light and on a dark page."""
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
                f'<text x="{_LEFT - 8}" y="{y + 13}" text-anchor="end">{escape(bar.what)}</text>'
                f'<rect x="{_LEFT}" y="{y}" width="{length:.0f}" height="{_BAR}" fill="#4878a8"/>'
                f'<text x="{_LEFT + length + 6:.0f}" y="{y + 13}">{escape(bar.text)}</text>'
            )
        y += _ROW + 14
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{y}" viewBox="0 0 {_WIDTH} {y}" '
        'font-family="sans-serif" font-size="13" fill="#808080">\n' + "\n".join(parts) + "\n</svg>\n"
    )
