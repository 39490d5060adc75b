"""The simulated Headscale releases that each tier of tests runs against."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from tests.simulators.dialects import VERSIONS

DEFAULT: Final = ("0.23.0", "0.27.1", "0.28.0", "0.30.0")
"""The releases of the default tier: one for each dialect of the API, oldest first."""

_ONLY_IN_FULL_TIER: Final = frozenset(VERSIONS) - frozenset(DEFAULT)


def needs_full_tier(parameters: Iterable[object]) -> bool:
    """Return True if one of a test's parameters is a release that only the full tier runs."""
    return any(isinstance(value, str) and value in _ONLY_IN_FULL_TIER for value in parameters)
