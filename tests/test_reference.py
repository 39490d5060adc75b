"""Test that docs/reference.md is up to date, and lists all events, settings, endpoints and exit statuses."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from documented_events import EVENTS
from generated_files import write_or_check
from reference import PAGE, page

from lifecycle.domain import errors
from lifecycle.health.server import ENDPOINTS
from lifecycle.settings.models import every_variable
from tests.logged_events import Logged, logged_events
from tests.pages import ROOT, quoted, rows, section

EVENT_NAME = re.compile(r"[a-z_]+\.[a-z_]+")


def test_page_is_up_to_date() -> None:
    assert PAGE.read_text() == page(), "run scripts/generate"


def test_check_of_generated_files_fails_if_one_is_stale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check succeeds after a run without --check, which writes the file."""
    files = {tmp_path / "reference.md": page()}
    monkeypatch.setattr(sys, "argv", ["generate", "--check"])
    assert write_or_check(files) == 1
    monkeypatch.setattr(sys, "argv", ["generate"])
    assert write_or_check(files) == 0
    monkeypatch.setattr(sys, "argv", ["generate", "--check"])
    assert write_or_check(files) == 0


@pytest.fixture(scope="module")
def logged() -> dict[str, Logged]:
    """Return the events that the code logs."""
    return logged_events(ROOT / "lifecycle")


def test_every_logged_event_is_documented(logged: dict[str, Logged]) -> None:
    assert sorted(logged) == sorted(EVENTS)


def test_event_names_have_two_parts() -> None:
    assert [name for name in EVENTS if EVENT_NAME.fullmatch(name) is None] == []


@pytest.mark.parametrize("name", EVENTS)
def test_event_is_logged_as_documented(logged: dict[str, Logged], name: str) -> None:
    assert set(EVENTS[name].levels) == logged[name].levels
    assert sorted(EVENTS[name].keys) == sorted(logged[name].keys - {"**"})  # `**kwargs` of a call


def test_page_lists_each_setting_once() -> None:
    names = [quoted(row["name"])[0] for row in rows(section(PAGE.read_text(), "## Settings"))]

    assert sorted(names) == sorted(every_variable())


def test_every_endpoint_is_documented() -> None:
    """The page is generated from ENDPOINTS, so ENDPOINTS must contain every path that the server serves."""
    served = re.findall(r'case "(/\w+)"', (ROOT / "lifecycle/health/server.py").read_text())

    assert served == list(ENDPOINTS)


def test_every_exit_status_is_documented() -> None:
    """The page is generated from EXIT_STATUSES, so EXIT_STATUSES must contain the status of every error."""
    classes = [value for value in vars(errors).values() if isinstance(value, type)]
    statuses = {error.exit_status for error in classes if issubclass(error, errors.LifecycleError)}

    assert errors.EXIT_STATUSES.keys() == {0, *statuses}
