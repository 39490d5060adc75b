"""The fixture that sets the required variables."""

from __future__ import annotations

import pytest

from tests.settings.environment import MINIMUM, Environment


@pytest.fixture
def env(monkeypatch: pytest.MonkeyPatch) -> Environment:
    """The environment, in which the variables that every command requires are set."""
    environment = Environment(monkeypatch)
    environment.set(**MINIMUM)
    return environment
