"""Warn if Headscale is newer than every release that this program was tested with."""

from __future__ import annotations

import re
from typing import Final

from lifecycle.domain.events import Event, warning

NEWEST_TESTED: Final = "0.30"
"""The newest minor release that was tested. 0.30 is not released yet: Headscale's main branch was tested."""

_MINOR: Final = re.compile(r"(\d{1,4})\.(\d{1,4})\.", re.ASCII)


def is_untested(version: str) -> bool:
    """Return True if a version is newer than the newest tested release; False for a range such as "0.30 or newer"."""
    match = _MINOR.match(version)
    return match is not None and list(map(int, match.groups())) > list(map(int, NEWEST_TESTED.split(".")))


def untested_warning(version: str) -> Event | None:
    """Return a warning if the release is untested, else None."""
    if not is_untested(version):
        return None
    return warning(
        "headscale.untested",
        version=version,
        newest_tested=NEWEST_TESTED,
        advice="Upgrade tailscale-lifecycle if there is a version that was tested with this release. Until then, "
        f"this program sends the same requests as to {NEWEST_TESTED}, and refuses responses that differ from those of "
        f"{NEWEST_TESTED}.",
    )
