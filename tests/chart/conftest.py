"""The fixture `chart`: a copy of the Helm chart that contains the sources of the image."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chart.helm import packed_chart


@pytest.fixture(scope="session")
def chart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the chart."""
    return packed_chart(tmp_path_factory.mktemp("chart"))
