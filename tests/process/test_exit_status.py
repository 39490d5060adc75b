"""Test the exit status of commands for each kind of failure, and that a failed command writes and deletes nothing."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from tests.builders import NAME
from tests.process.commands import CompletedRun, Pod


def invalid_settings(result: CompletedRun) -> list[str]:
    """Return the names of the settings that are reported as invalid, in the order of the report."""
    events = [json.loads(line) for line in result.output.splitlines()]
    return [event["error"].partition(":")[0] for event in events if event["event"] == "settings.invalid"]


@pytest.mark.parametrize(
    ("variables", "invalid"),
    [
        pytest.param({"CLOUDFLARE_API_TOKEN": ""}, ["CLOUDFLARE_API_TOKEN"], id="no token"),
        pytest.param(
            {"DOMAIN_NAME": "", "CLOUDFLARE_ZONE_ID": "x", "HTTP_TIMEOUT": "soon"},
            ["CLOUDFLARE_ZONE_ID", "DOMAIN_NAME", "HTTP_TIMEOUT"],
            id="several settings",
        ),
    ],
)
def test_invalid_settings_exit_with_2(pod: Pod, variables: dict[str, str], invalid: list[str]) -> None:
    pod.add_leftovers()
    result = pod.run("cleanup", **variables)
    assert (result.status, result.stderr) == (2, "")
    assert invalid_settings(result) == invalid
    assert {event["level"] for event in result.events} == {"error"}
    assert pod.headscale.requests == pod.cloudflare.requests == []
    assert pod.has_no_writes
    # A message can contain a shorter value by chance.
    values = [value for value in variables.values() if len(value) > 8]
    assert [value for value in values if value in result.stdout] == [], "the message contains the value of a setting"


@pytest.mark.max_cases_without_full(1)
@pytest.mark.parametrize("command", [["dns-watch"], ["dns-watch", "--once"], ["--dry-run"]])
def test_invalid_settings_exit_with_2_in_dns_watch_and_dry_runs(pod: Pod, command: list[str]) -> None:
    result = pod.run(*command, CLOUDFLARE_ZONE_ID="example.com", DNS_TTL="5")
    assert result.status == 2
    assert invalid_settings(result) == ["CLOUDFLARE_ZONE_ID", "DNS_TTL"]
    assert pod.has_no_writes


def test_each_invalid_setting_is_one_line_in_the_console_format(pod: Pod) -> None:
    result = pod.run("cleanup", LOG_FORMAT="console", CLOUDFLARE_ZONE_ID="example.com", DOMAIN_NAME="")
    assert result.status == 2
    assert len(result.stdout.splitlines()) == 2
    assert "\\n" not in result.stdout


# --- Failures -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variables", "error_type"),
    [
        pytest.param({"HEADSCALE_USER": "bob"}, "UserError", id="unknown user"),
        pytest.param({"HEADSCALE_API_KEY": "hskey-api-wrong"}, "AuthError", id="wrong API key"),
        pytest.param({"AUTHKEY_OUTPUT_PATH": "/no/such/folder/authkey"}, "KeyFileError", id="missing folder"),
    ],
)
def test_failed_cleanup_exits_with_1_and_the_error_names_the_setting(
    pod: Pod, variables: dict[str, str], error_type: str
) -> None:
    pod.add_leftovers()
    result = pod.run("cleanup", **variables)
    assert (result.status, result.stderr) == (1, "")
    assert (result.last_event["event"], result.last_event["level"]) == ("command.failed", "error")
    assert result.last_event["error_type"] == error_type
    [setting] = variables
    assert setting in result.last_event["error"]
    assert pod.has_no_writes
    assert pod.secrets_in(result.stdout) == []


@pytest.mark.parametrize("arguments", [["cleanup"], ["--dry-run"]])
def test_unsupported_headscale_exits_with_1(make_pod: Callable[..., Pod], arguments: list[str]) -> None:
    pod = make_pod("0.22.3")
    result = pod.run(*arguments)
    assert result.status == 1
    assert "0.23" in result.stdout, "the output does not name the oldest supported release"
    assert pod.has_no_writes


@pytest.mark.max_cases_without_full(1)
@pytest.mark.parametrize(
    ("setting", "value"),
    [
        pytest.param("CLOUDFLARE_API_TOKEN", "wrong", id="wrong token"),
        pytest.param("CLOUDFLARE_API_URL", "http://127.0.0.1:1", id="unreachable Cloudflare"),
    ],
)
def test_dns_watch_once_exits_with_1_if_the_record_is_out_of_sync(pod: Pod, setting: str, value: str) -> None:
    pod.headscale.add_node(NAME, user="svc")
    # Without an interface, dns-watch reads the node's address from Headscale.
    result = pod.run("dns-watch", "--once", TAILSCALE_INTERFACE="", **{setting: value})
    assert (result.status, result.stderr) == (1, "")
    assert result.last_event["event"] == "command.failed"
    assert setting in result.last_event["error"]
    assert pod.has_no_writes


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        pytest.param("HEADSCALE_URL", "http://127.0.0.1:1", id="unreachable Headscale"),
        pytest.param("CLOUDFLARE_API_TOKEN", "wrong", id="wrong Cloudflare token"),
    ],
)
@pytest.mark.parametrize("output", ["text", "json"])
def test_incomplete_dry_run_exits_with_1_and_prints_the_reason(pod: Pod, setting: str, value: str, output: str) -> None:
    result = pod.run("--dry-run", "--output", output, **{setting: value})
    assert result.status == 1
    problems = (
        json.loads(result.stdout)["plans"]["cleanup"]["problems"]
        if output == "json"
        else [line for line in result.stdout.splitlines() if line.startswith("  problem:")]
    )
    assert any(setting in problem for problem in problems)
    assert pod.has_no_writes
    assert pod.secrets_in(result.output) == []
