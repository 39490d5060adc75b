"""The messages of Headscale and Tailscale in the operations page are in the programs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.real.programs import Release

HEADSCALE_MESSAGES = ("authkey already used", "authkey expired", "invalid pre auth key")
TAILSCALE_MESSAGES = ("requires mentioning all", "non-default flags")


@pytest.mark.parametrize("message", [*HEADSCALE_MESSAGES, *TAILSCALE_MESSAGES])
def test_message_of_the_page_is_in_the_program(repository: Path, release: Release, message: str) -> None:
    """Headscale has these messages from 0.25 on."""
    row = re.search(rf"^\|[^|]*`{message}`[^|]*\|", (repository / "docs/operations.md").read_text(), flags=re.MULTILINE)
    assert row
    program = release.headscale if message in HEADSCALE_MESSAGES else release.tailscale
    expected = message in TAILSCALE_MESSAGES or release.minor >= 25
    assert (message.encode() in program.read_bytes()) == expected
