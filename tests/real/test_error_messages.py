"""Test that Headscale and Tailscale contain the error messages that docs/operations.md explains."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.real.programs import Release

HEADSCALE_MESSAGES = ("authkey already used", "authkey expired", "invalid pre auth key")
TAILSCALE_MESSAGES = ("requires mentioning all", "non-default flags")


@pytest.mark.parametrize("message", [*HEADSCALE_MESSAGES, *TAILSCALE_MESSAGES])
def test_program_contains_the_documented_message(repository: Path, release: Release, message: str) -> None:
    """Headscale 0.23 and 0.24 do not contain the three messages of Headscale."""
    row = re.search(rf"^\|[^|]*`{message}`[^|]*\|", (repository / "docs/operations.md").read_text(), flags=re.MULTILINE)
    assert row, "docs/operations.md has no table row for the message"
    program = release.headscale if message in HEADSCALE_MESSAGES else release.tailscale
    expected = message in TAILSCALE_MESSAGES or release.minor >= 25
    assert (message.encode() in program.read_bytes()) == expected
