"""docs/reference.md is up to date, and its events, settings, endpoints and exit statuses are those of the code."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from documented_events import EVENTS

from lifecycle.domain import errors
from lifecycle.health.server import ENDPOINTS
from lifecycle.settings.models import every_variable
from tests.logged_events import Logged, logged_events
from tests.pages import ROOT, quoted, rows, section

PAGE = "docs/reference.md"
EVENT = re.compile(r"[a-z_]+\.[a-z_]+")


def check(path: Path) -> int:
    """Return the exit status of `scripts/reference.py --check`, which fails if the page is not up to date."""
    program = [sys.executable, "scripts/reference.py", "--check", str(path)]
    return subprocess.run(program, cwd=ROOT, check=False, capture_output=True).returncode


def test_page_is_up_to_date() -> None:
    assert check(ROOT / PAGE) == 0, "run scripts/reference.py"


def test_stale_page_is_detected(tmp_path: Path) -> None:
    page = tmp_path / "reference.md"
    assert check(page) == 1

    page.write_text((ROOT / PAGE).read_text().replace("| `30` |", "| `31` |"))
    assert check(page) == 1


@pytest.fixture(scope="module")
def logged() -> dict[str, Logged]:
    """Return the events that the code logs."""
    return logged_events(ROOT / "lifecycle")


def test_every_logged_event_is_documented(logged: dict[str, Logged]) -> None:
    assert sorted(logged) == sorted(EVENTS)


def test_event_names_are_a_noun_and_a_verb() -> None:
    assert [name for name in EVENTS if EVENT.fullmatch(name) is None] == []


@pytest.mark.parametrize("name", EVENTS)
def test_event_is_logged_as_documented(logged: dict[str, Logged], name: str) -> None:
    assert set(EVENTS[name].levels) == logged[name].levels
    assert sorted(EVENTS[name].keys) == sorted(logged[name].keys - {"**"})


def test_page_lists_each_setting_once() -> None:
    names = [quoted(row["name"])[0] for row in rows(section((ROOT / PAGE).read_text(), "## Settings"))]

    assert sorted(names) == sorted(every_variable())


def test_every_endpoint_is_documented() -> None:
    """The page is generated from ENDPOINTS."""
    served = re.findall(r'case "(/\w+)"', (ROOT / "lifecycle/health/server.py").read_text())

    assert served == list(ENDPOINTS)


def test_every_exit_status_is_documented() -> None:
    """The page is generated from EXIT_STATUSES."""
    classes = [value for value in vars(errors).values() if isinstance(value, type)]
    statuses = {error.exit_status for error in classes if issubclass(error, errors.LifecycleError)}

    assert errors.EXIT_STATUSES.keys() == {0, *statuses}
