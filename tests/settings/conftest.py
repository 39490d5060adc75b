"""The fixture that sets the required variables."""

from __future__ import annotations

import pytest

from tests.settings.environment import MINIMUM, Environment


@pytest.fixture
def env(monkeypatch: pytest.MonkeyPatch) -> Environment:
    """The environment, with the smallest set of variables that cleanup and dns-watch accept (`MINIMUM`)."""
    environment = Environment(monkeypatch)
    environment.set(**MINIMUM)
    return environment
