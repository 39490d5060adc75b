"""Tests of commands and dry runs as processes that reach Headscale by its URL."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Callable
from typing import Any

import httpx
import pytest

import lifecycle
from lifecycle.settings.models import DryRunSettings, command_variables
from tests.builders import NAME, OUR_COMMENT
from tests.clients.kubeconfigs import a_kubeconfig
from tests.process.commands import PROGRAM, CompletedRun, Pod
from tests.real.programs import free_ports
from tests.simulators.dialects import VERSIONS
from tests.simulators.vpn_client import VpnClient

# Manifests that set only MAX_RETRIES and RETRY_INTERVAL for dns-watch, and those in `Pod.environment`, must work.
# Port 0 disables the health endpoints.
SIDECAR_SETTINGS = {"MAX_RETRIES": "30", "RETRY_INTERVAL": "10", "HEALTH_PORT": "0"}


def logs_events_only(result: CompletedRun) -> bool:
    """Return True if standard error is empty and standard output has only events."""
    return not result.stderr and all(
        {"event", "level", "timestamp"} <= event.keys() and event["event"].count(".") == 1 for event in result.events
    )


def run_all_commands(pod: Pod) -> dict[str, Any]:
    """Run a dry run, `cleanup` and `dns-watch`, and check their effects.

    Returns:
        The "context" in the JSON report of the dry run.
    """
    pod.add_leftovers()

    planned = pod.run("--dry-run", "--output", "json", LOG_LEVEL="debug")
    assert planned.status == 0, planned.stderr
    assert pod.has_no_writes
    report = json.loads(planned.stdout)
    plans = report["plans"]
    changes = [(change["action"], change["kind"]) for change in plans["cleanup"]["changes"]]
    assert changes == [("delete", "node"), ("create", "pre_auth_key"), ("write", "file"), ("delete", "record")]
    assert plans["dns-watch"]["changes"] == []

    cleaned = pod.run("cleanup", LOG_LEVEL="debug")
    assert cleaned.status == 0, cleaned.stdout
    assert pod.headscale.nodes == []
    assert pod.records() == {}
    assert pod.key_file.read_text() == pod.headscale.keys[-1].key
    assert (cleaned.events[0]["event"], cleaned.last_event["event"]) == ("settings.loaded", "pass.finished")

    # Two nodes have the same name. dns-watch must publish the second node, which registers with the key of cleanup.
    pod.headscale.add_node(NAME, user="svc")
    node = VpnClient(pod.headscale, key_file=pod.key_file, hostname=NAME).start()
    watched = pod.run("dns-watch", "--once", **SIDECAR_SETTINGS, LOG_LEVEL="debug")
    assert watched.status == 0, watched.stdout
    assert pod.records() == {f"A {node.addresses[0]}": OUR_COMMENT}
    number_of_writes = len(pod.cloudflare.writes)
    again = pod.run("dns-watch", "--once", **SIDECAR_SETTINGS, LOG_LEVEL="debug")
    assert again.status == 0, again.stdout
    assert len(pod.cloudflare.writes) == number_of_writes

    results = (planned, cleaned, watched, again)
    assert pod.secrets_in(*(result.output for result in results)) == []
    assert all(map(logs_events_only, results[1:]))
    return dict(report["context"])


# Without --full, only the first case runs, so the newest release is first.
@pytest.mark.max_cases_without_full(1)
@pytest.mark.parametrize("version", VERSIONS[::-1])
def test_all_commands_with_each_headscale_release(make_pod: Callable[..., Pod], version: str) -> None:
    run_all_commands(make_pod(version))


def test_program_runs_as_a_module(pod: Pod) -> None:
    result = pod.start_command(sys.executable, "-m", "lifecycle", "--dry-run", "--output", "json").wait()
    assert result.status == 0
    assert json.loads(result.stdout)["context"]["name"] == NAME
    assert pod.has_no_writes


# --- The dry run --------------------------------------------------------------------------------------


@pytest.mark.max_cases_without_full(2)
@pytest.mark.parametrize("command", ["cleanup", "dns-watch"])
@pytest.mark.parametrize("output", ["text", "json"])
def test_dry_run_of_one_command_prints_only_its_plan(pod: Pod, command: str, output: str) -> None:
    result = pod.run(command, "--dry-run", "--output", output)
    assert result.status == 0
    printed = [
        name
        for name in ("cleanup", "dns-watch")
        if (f'"{name}": {{' in result.stdout or f"{name} would" in result.stdout)
    ]
    assert printed == [command]
    assert "\x1b" not in result.stdout, "the output has colors although it is not a terminal"
    assert pod.has_no_writes


@pytest.mark.parametrize(
    ("command", "variables"),
    [
        ("cleanup", {"DNS_TTL": "never", "HEALTH_PORT": "none"}),
        ("dns-watch", {"NODE_POLICY": "keep", "DNS_CLEANUP": "perhaps"}),
    ],
)
def test_dry_run_of_one_command_ignores_settings_of_the_other_command(
    pod: Pod, command: str, variables: dict[str, str]
) -> None:
    result = pod.run(command, "--dry-run", **variables)
    assert result.status == 0, result.stderr
    assert pod.run("--dry-run", **variables).status == 2, "the dry run of both commands reads all settings"


def test_dry_run_removes_the_files_of_the_kubernetes_client(pod: Pod) -> None:
    """The client writes the (invalid) certificate to a file in TMPDIR, and removes the file when Python exits."""
    config = pod.working_directory / "config"
    kubeconfig = a_kubeconfig("https://127.0.0.1:9", cluster={"certificate-authority-data": "LS0tCg=="})
    config.write_text(json.dumps(kubeconfig))
    variables = {"HEADSCALE_ACCESS": "exec", "KUBECONFIG": str(config), "TMPDIR": str(pod.volume)}
    result = pod.start_command(PROGRAM, "--dry-run", **variables).wait()
    assert "certificate" in result.stderr
    assert pod.volume_files == []


# --- Version, help and usage errors -------------------------------------------------------------------


def test_version_is_printed(pod: Pod) -> None:
    assert pod.run("--version").stdout == f"tailscale-lifecycle {lifecycle.__version__}\n"


def test_help_lists_every_setting(pod: Pod) -> None:
    result = pod.run("--help")
    assert (result.status, result.stderr) == (0, "")
    missing = [name for name in command_variables(DryRunSettings) if f"  {name}" not in result.stdout]
    assert missing == []
    for command in ("cleanup", "dns-watch"):
        assert pod.run(command, "--help").status == 0


@pytest.mark.max_cases_without_full(2)
@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param([], id="no command"),
        pytest.param(["clean"], id="unknown command"),
        pytest.param(["cleanup", "--once"], id="option of another command"),
        pytest.param(["cleanup", "--output", "json"], id="output without dry run"),
        pytest.param(["--dry-run", "--output", "yaml"], id="unknown output"),
        pytest.param(["cleanup", "extra"], id="extra argument"),
    ],
)
def test_invalid_arguments_are_reported_on_standard_error(pod: Pod, arguments: list[str]) -> None:
    result = pod.run(*arguments)
    assert (result.status, result.stdout) == (2, "")
    assert "usage: lifecycle" in result.stderr
    assert pod.has_no_writes


# --- dns-watch ----------------------------------------------------------------------------------------


def test_dns_watch_creates_and_updates_the_record_until_it_is_stopped(pod: Pod) -> None:
    assert pod.run("cleanup").status == 0
    client = VpnClient(pod.headscale, key_file=pod.key_file, hostname=NAME)
    client.start()
    watch = pod.start_command(PROGRAM, "dns-watch", HEALTH_PORT="0", POLL_INTERVAL="1s", LOG_LEVEL="debug")
    assert watch.wait_for_event("record.created")["content"] == client.addresses[0]
    client.change_address()
    assert watch.wait_for_event("record.updated")["content"] == client.addresses[0]
    result = watch.stop()
    assert result.status == 0
    assert logs_events_only(result)
    assert pod.records() == {f"A {client.addresses[0]}": OUR_COMMENT}
    assert pod.secrets_in(result.stdout) == []


def test_dns_watch_serves_its_health_port_if_no_server_is_reachable(pod: Pod) -> None:
    (port,) = free_ports(1)
    unreachable = dict.fromkeys(("HEADSCALE_URL", "CLOUDFLARE_API_URL"), "http://127.0.0.1:1")
    address = {"HEALTH_PORT": str(port), "HEALTH_ADDRESS": "127.0.0.1"}
    watch = pod.start("dns-watch", **unreachable, **address, TAILSCALE_INTERFACE="")
    for _ in range(2):
        watch.wait_for_event("pass.failed")
    livez, readyz, nodez = (httpx.get(f"http://127.0.0.1:{port}/{path}") for path in ("livez", "readyz", "nodez"))
    assert livez.json() == {"alive": True}
    assert "HEADSCALE_URL" in readyz.json()["reason"]
    assert nodez.status_code == 200
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("::1", port))
    assert watch.stop().status == 0


def test_cleanup_writes_only_the_key_and_its_metadata(pod: Pod) -> None:
    before = sorted(pod.working_directory.iterdir())
    assert pod.run("cleanup").status == 0
    assert sorted(pod.working_directory.iterdir()) == before
    assert pod.volume_files == ["authkey", "authkey.id"]
