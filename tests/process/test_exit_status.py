"""Test the exit status of commands for each kind of failure, and that a failed command writes and deletes nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.builders import COMMENT_OF_OTHER_OWNER, NAME
from tests.process.commands import CompletedRun, Pod
from tests.simulators import faults
from tests.simulators.serve import serve


def invalid_settings(result: CompletedRun) -> list[str]:
    """Return the names of the settings that are reported as invalid, in the order of the report."""
    events = [json.loads(line) for line in result.output.splitlines()]
    return [event["error"].partition(":")[0] for event in events if event["event"] == "settings.invalid"]


@pytest.mark.max_cases_without_full(2)
@pytest.mark.parametrize(
    ("variables", "invalid"),
    [
        pytest.param({"CLOUDFLARE_API_TOKEN": ""}, ["CLOUDFLARE_API_TOKEN"], id="no token"),
        pytest.param({"CLOUDFLARE_ZONE_ID": "example.com"}, ["CLOUDFLARE_ZONE_ID"], id="invalid zone id"),
        pytest.param({"HOSTNAME": f"{'a' * 58}-0"}, ["TS_HOSTNAME"], id="pod name too long with the domain"),
        # Only the first pod has a default hostname: the name of the StatefulSet.
        pytest.param({"HOSTNAME": "grafana-1"}, ["TS_HOSTNAME"], id="second pod of a StatefulSet"),
        pytest.param({"AUTHKEY_OUTPUT_PATH": "/volume/auth\nkey"}, ["AUTHKEY_OUTPUT_PATH"], id="line break in a path"),
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

Variables = dict[str, str]

Failure = Variables | Callable[[Pod], Variables]
"""Settings with which a command fails, or a function that makes it fail and returns additional settings."""


def settings_of(failure: Failure, pod: Pod) -> Variables:
    return failure if isinstance(failure, dict) else failure(pod)


OTHER_OWNER = COMMENT_OF_OTHER_OWNER.split()[1]
"""The DNS_OWNER of a record that belongs to another owner. The record's comment contains it."""

WRONG_USER = {"HEADSCALE_USER": "bob"}
WRONG_KEY = {"HEADSCALE_API_KEY": "hskey-api-wrong"}
MISSING_FOLDER = {"AUTHKEY_OUTPUT_PATH": "/no/such/folder/authkey"}


def several_users(pod: Pod) -> Variables:
    pod.headscale.add_user("ann")
    return {}


def web_page_as_response(pod: Pod) -> Variables:
    pod.headscale.faults.add(faults.html(200), times=None)
    return {}


def unwritable_folder(pod: Pod) -> Variables:
    if not Path("/sys/kernel").is_dir():
        pytest.skip("needs /sys, where no file can be created")
    return {"AUTHKEY_OUTPUT_PATH": "/sys/kernel/authkey"}


def record_of_other_owner(pod: Pod) -> Variables:
    pod.cloudflare.add_record(pod.zone_id, type="A", name=NAME, content="100.64.0.9", comment=COMMENT_OF_OTHER_OWNER)
    return {}


@pytest.mark.max_cases_without_full(3)
@pytest.mark.parametrize(
    ("failure", "error_type", "words"),
    [
        pytest.param(WRONG_USER, "UserError", ["bob", "HEADSCALE_USER", "svc"], id="unknown user"),
        pytest.param(several_users, "UserError", ["ann", "svc", "HEADSCALE_USER"], id="several users"),
        pytest.param(WRONG_KEY, "AuthError", ["headscale apikeys create", "HEADSCALE_API_KEY"], id="wrong API key"),
        pytest.param(web_page_as_response, "ResponseError", ["HEADSCALE_URL"], id="web page as response"),
        pytest.param(MISSING_FOLDER, "KeyFileError", ["AUTHKEY_OUTPUT_PATH"], id="missing folder"),
        pytest.param(unwritable_folder, "KeyFileError", ["AUTHKEY_OUTPUT_PATH", "/sys/kernel"], id="unwritable folder"),
        pytest.param(
            record_of_other_owner, "NameTakenError", ["TS_HOSTNAME", OTHER_OWNER], id="record of another owner"
        ),
    ],
)
def test_failed_cleanup_exits_with_1_and_the_error_names_what_to_change(
    pod: Pod, failure: Failure, error_type: str, words: list[str]
) -> None:
    pod.add_leftovers()
    result = pod.run("cleanup", **settings_of(failure, pod))
    assert (result.status, result.stderr) == (1, "")
    assert (result.last_event["event"], result.last_event["level"]) == ("command.failed", "error")
    assert result.last_event["error_type"] == error_type
    assert [word for word in words if word not in result.last_event["error"]] == []
    assert pod.has_no_writes
    assert pod.secrets_in(result.stdout) == []


@pytest.mark.parametrize("arguments", [["cleanup"], ["--dry-run"]])
def test_unsupported_headscale_exits_with_1(make_pod: Callable[..., Pod], arguments: list[str]) -> None:
    pod = make_pod("0.22.3")
    result = pod.run(*arguments)
    assert result.status == 1
    assert "0.23" in result.stdout, "the output does not name the oldest supported release"
    assert pod.has_no_writes


def test_wrong_cloudflare_token_does_not_fail_cleanup(pod: Pod) -> None:
    pod.add_leftovers()
    result = pod.run("cleanup", CLOUDFLARE_API_TOKEN="not-the-token-0123456789")
    assert (result.status, result.stderr) == (0, "")
    [unreadable] = result.events_named("zone.unreadable")
    assert "CLOUDFLARE_API_TOKEN" in unreadable["error"]
    assert pod.volume_files == ["authkey", "authkey.id"]
    assert len(pod.records()) == 1
    assert "not-the-token" not in result.stdout


@pytest.mark.max_cases_without_full(1)
@pytest.mark.parametrize(
    ("variables", "setting"),
    [
        pytest.param({"CLOUDFLARE_API_TOKEN": "wrong"}, "CLOUDFLARE_API_TOKEN", id="wrong token"),
        pytest.param({"CLOUDFLARE_ZONE_ID": "0" * 32}, "CLOUDFLARE_ZONE_ID", id="unknown zone id"),
        pytest.param({"CLOUDFLARE_ZONE_ID": "", "DOMAIN_NAME": "example.org"}, "DOMAIN_NAME", id="domain without zone"),
        pytest.param({"CLOUDFLARE_API_URL": "http://127.0.0.1:1"}, "CLOUDFLARE_API_URL", id="unreachable Cloudflare"),
    ],
)
def test_dns_watch_once_exits_with_1_if_the_record_is_out_of_sync(
    pod: Pod, variables: dict[str, str], setting: str
) -> None:
    # The second hostname is for the case in which DOMAIN_NAME is example.org.
    for hostname in (NAME, "grafana.example.org"):
        pod.headscale.add_node(hostname, user="svc")
    # Without an interface, dns-watch reads the node's address from Headscale.
    result = pod.run("dns-watch", "--once", TAILSCALE_INTERFACE="", **variables)
    assert (result.status, result.stderr) == (1, "")
    assert result.last_event["event"] == "command.failed"
    assert setting in result.last_event["error"]
    assert pod.has_no_writes


def unreachable_headscale(pod: Pod) -> Variables:
    # The server stops at the end of the block.
    with serve(pod.headscale) as url:
        pass
    return {"HEADSCALE_URL": url}


@pytest.mark.max_cases_without_full(3)
@pytest.mark.parametrize(
    ("failure", "word"),
    [
        pytest.param(unreachable_headscale, "HEADSCALE_URL", id="unreachable Headscale"),
        pytest.param(WRONG_KEY, "HEADSCALE_API_KEY", id="wrong API key"),
        pytest.param(WRONG_USER, "bob", id="unknown user"),
        pytest.param({"CLOUDFLARE_API_TOKEN": "wrong"}, "CLOUDFLARE_API_TOKEN", id="wrong Cloudflare token"),
        pytest.param(record_of_other_owner, OTHER_OWNER, id="record of another owner"),
    ],
)
@pytest.mark.parametrize("output", ["text", "json"])
def test_incomplete_dry_run_exits_with_1_and_prints_the_reason(
    pod: Pod, failure: Failure, word: str, output: str
) -> None:
    result = pod.run("--dry-run", "--output", output, **settings_of(failure, pod))
    assert result.status == 1
    problems = (
        json.loads(result.stdout)["plans"]["cleanup"]["problems"]
        if output == "json"
        else [line for line in result.stdout.splitlines() if line.startswith("  problem:")]
    )
    assert any(word in problem for problem in problems)
    assert pod.has_no_writes
    assert pod.secrets_in(result.output) == []
