"""The words of Headscale and Tailscale that the operator is told to look for are theirs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.real.programs import Release

HEADSCALES = ("authkey already used", "authkey expired", "invalid pre auth key")
TAILSCALES = ("requires mentioning all", "non-default flags")


@pytest.mark.parametrize("words", [*HEADSCALES, *TAILSCALES])
def test_the_page_tells_what_the_program_says(repository: Path, release: Release, words: str) -> None:
    """Up to 0.24 Headscale has other words."""
    row = re.search(rf"^\|[^|]*`{words}`[^|]*\|", (repository / "docs/operations.md").read_text(), flags=re.MULTILINE)
    assert row
    program = release.headscale if words in HEADSCALES else release.tailscale
    expected = words in TAILSCALES or release.minor >= 25
    assert (words.encode() in program.read_bytes()) == expected
