"""Both services on loopback, and a program that can be run a hundred times."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.security.runs import Runs


@pytest.fixture
def runs(tmp_path: Path, clean_environment: Mapping[str, str]) -> Iterator[Runs]:
    """Runs the program in forks of one process."""
    with Runs(tmp_path, clean_environment) as runs:
        yield runs
