"""A fixture that runs the program many times."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.security.runs import Runs


@pytest.fixture
def runs(tmp_path: Path, clean_environment: Mapping[str, str]) -> Iterator[Runs]:
    """Return a runner that forks one process for each run."""
    with Runs(tmp_path, clean_environment) as runs:
        yield runs
