"""Set environment variables for one test, and load the settings from these variables."""

from __future__ import annotations

import pytest

from lifecycle.domain.errors import ConfigError
from lifecycle.settings.load import load
from lifecycle.settings.models import DryRunSettings, Settings

# The smallest set of variables with which the settings of cleanup and dns-watch are valid.
MINIMUM = {
    "CLOUDFLARE_API_TOKEN": "cf-t0ken",
    "DOMAIN_NAME": "example.com",
    "HEADSCALE_API_KEY": "hs-k3y",
    "POD_NAME": "grafana-0",
}

ZONE_ID = "0123456789abcdef0123456789abcdef"

# The user id of `nobody`.
UNPRIVILEGED_USER_ID = 65534


class Environment:
    """Sets environment variables, which pytest restores after the test."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch

    def set(self, **variables: str | None) -> None:
        """Set these variables. None as the value unsets a variable."""
        for name, value in variables.items():
            if value is None:
                self._monkeypatch.delenv(name, raising=False)
            else:
                self._monkeypatch.setenv(name, value)

    def load(self, **variables: str | None) -> DryRunSettings:
        """Set these variables, and load the settings of a dry run, which are those of cleanup and dns-watch."""
        self.set(**variables)
        return load(DryRunSettings)

    def problems(self, **variables: str | None) -> dict[str, str]:
        """Set these variables, and return the message about each setting that is not valid."""
        self.set(**variables)
        error = problem_of(DryRunSettings)
        assert error is not None, "the settings are valid"
        lines = str(error).split("\n")
        return {name: text for name, _, text in (line.partition(": ") for line in lines)}


def problem_of(model: type[Settings]) -> ConfigError | None:
    """Load settings, and return the error; None if the settings are valid."""
    try:
        load(model)
    except ConfigError as error:
        return error
    return None
