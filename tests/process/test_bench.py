"""The benchmark's table, chart and limits. The measurements themselves are run by .ci/run."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree as ET

import pytest

from tests.pages import rows


@pytest.fixture
def bench(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The module with the limits, imported as the script imports it."""
    monkeypatch.syspath_prepend(str(repository / "scripts"))
    import bench_figures  # noqa: PLC0415 - not a package

    yield bench_figures
    del sys.modules["bench_figures"]


NAME = "delay from interface address to DNS record"


def test_figure_outside_its_limits_is_reported(bench: ModuleType) -> None:
    slow, normal = bench.Figure(NAME, "9 s", 9.0), bench.Figure(NAME, "1 s", 1.0)
    [message] = bench.outside_limits([normal, slow, bench.Figure(NAME, "not measured")])
    assert NAME in message
    assert "9.00" in message


def test_table_shows_limits_and_goal_of_each_figure(bench: ModuleType) -> None:
    [row] = rows(bench.table([bench.Figure(NAME, "1 s", 1.0)]))
    limits = bench.read_limits()[NAME]
    assert row == {
        "measurement": NAME,
        "result": "1 s",
        "limits": f"{limits.lower:g} to {limits.upper:g}",
        "goal": limits.goal,
    }


def test_chart_is_well_formed_and_bars_of_a_group_have_one_scale(bench: ModuleType) -> None:
    bars = [bench.Bar("<start>", "a & b", 1.0, "1 s"), bench.Bar("<start>", "c", 2.0, "2 s")]
    widths = [float(rect.get("width", 0)) for rect in ET.fromstring(bench.chart(bars)).iter() if "rect" in rect.tag]
    assert widths[1] == 2 * widths[0]


def test_page_has_every_figure_with_current_limits(bench: ModuleType, repository: Path) -> None:
    page = (repository / "docs" / "bench.md").read_text()
    figures = [bench.Figure(row["measurement"], row["result"], 0.0 if row["limits"] else None) for row in rows(page)]
    assert page == bench.page(figures, chart_file="bench.svg")
    assert set(bench.read_limits()) <= {figure.name for figure in figures}
