"""What is expected of the measurements stands in one file, and whoever leaves it is named; noise fails nothing."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree as ET

import pytest

from tests.test_docs import rows


@pytest.fixture
def bench(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The module that knows what is expected, as the script finds it."""
    monkeypatch.syspath_prepend(str(repository / "scripts"))
    import bench_figures  # noqa: PLC0415 - not a package

    yield bench_figures
    del sys.modules["bench_figures"]


KEY = "address on the interface to record"


def test_who_leaves_its_band_is_named(bench: ModuleType) -> None:
    slow, fine = bench.Figure(KEY, "9 s", 9.0), bench.Figure(KEY, "1 s", 1.0)
    assert bench.strays([fine, slow, bench.Figure(KEY, "not measured")]) == [
        f"left its band: {KEY}: 9.00 is not 0 to 1.5"
    ]


def test_the_table_has_each_figure_beside_what_is_expected(bench: ModuleType) -> None:
    assert f"| {KEY} | 1 s | 0 to 1.5 | at most 1.5 s in every run |" in bench.table([bench.Figure(KEY, "1 s", 1.0)])


def test_the_picture_is_well_formed_and_its_bars_have_one_scale(bench: ModuleType) -> None:
    bars = [bench.Bar("<start>", "a & b", 1.0, "1 s"), bench.Bar("<start>", "c", 2.0, "2 s")]
    widths = [float(rect.get("width", 0)) for rect in ET.fromstring(bench.picture(bars)).iter() if "rect" in rect.tag]
    assert widths[1] == 2 * widths[0]


def test_the_page_has_every_figure_that_something_is_expected_of(bench: ModuleType, repository: Path) -> None:
    """As the script would write it: with today's bands and goals."""
    page = (repository / "docs" / "bench.md").read_text()
    figures = [bench.Figure(row["what"], row["figure"], 0.0 if row["band"] else None) for row in rows(page)]
    assert page == bench.page(figures, picture="bench.svg")
    assert set(bench.expected()) <= {figure.what for figure in figures}
