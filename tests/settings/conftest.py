"""A fixture with the required settings of every command."""

from __future__ import annotations

import pytest

from tests.settings.environment import MINIMUM, Environment


@pytest.fixture
def env(monkeypatch: pytest.MonkeyPatch) -> Environment:
    environment = Environment(monkeypatch)
    environment.set(**MINIMUM)
    return environment
