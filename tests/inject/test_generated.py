"""Test that what is generated from containers.yaml is current."""

from __future__ import annotations

from pathlib import Path

import pytest
from manifests import generated

FILES = generated()


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_generated_file_is_current(path: Path) -> None:
    assert FILES[path].splitlines() == path.read_text().splitlines()
