"""Test that docs/bench.md has the current limits, and that results outside their limits are reported."""

from __future__ import annotations

from pathlib import Path

import bench_figures as bench

from tests.pages import rows

FIGURE_NAME = "delay from interface address to DNS record"


def test_figure_outside_its_limits_is_reported() -> None:
    slow, normal = bench.Figure(FIGURE_NAME, "9 s", value=9.0), bench.Figure(FIGURE_NAME, "1 s", value=1.0)
    [message] = bench.outside_limits([normal, slow, bench.Figure(FIGURE_NAME, "not measured")])
    assert FIGURE_NAME in message
    assert "9.00" in message


def test_page_has_current_limits_and_a_reference_for_each_figure_with_limits(repository: Path) -> None:
    page = (repository / "docs" / "bench.md").read_text()
    # The page contains no values, so each figure that has limits gets the value 0.
    figures = [
        bench.Figure(row["measurement"], row["result"], row["reference"], 0.0 if row["limits"] else None)
        for row in rows(page)
    ]
    assert page.startswith(bench.page(figures, ""))
    assert all(figure.reference for figure in figures if figure.value is not None)
    assert set(bench.read_limits()) == {figure.name for figure in figures if figure.value is not None}
