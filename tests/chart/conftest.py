"""The chart with the sources of the image."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chart.helm import packed_chart


@pytest.fixture(scope="session")
def chart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packed_chart(tmp_path_factory.mktemp("chart"))
