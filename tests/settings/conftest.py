"""An environment with the minimum for every command."""

from __future__ import annotations

import pytest

from tests.settings.environment import ENOUGH, Environment


@pytest.fixture
def env(monkeypatch: pytest.MonkeyPatch) -> Environment:
    environment = Environment(monkeypatch)
    environment.set(**ENOUGH)
    return environment
