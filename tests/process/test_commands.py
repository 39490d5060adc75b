"""Both commands and the dry run as processes, on every release of Headscale."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import lifecycle
from lifecycle.settings.models import DryRunSettings, command_variables
from tests.builders import MARK, NAME
from tests.process.commands import Ended, Pod
from tests.simulators.dialects import VERSIONS
from tests.simulators.vpn_client import VpnClient

# What the sidecar's manifests have besides.
SIDECAR = {"MAX_RETRIES": "30", "RETRY_INTERVAL": "10", "HEALTH_PORT": "0"}


def leave_behind(pod: Pod, *, user: str = "svc") -> None:
    """What an earlier pod left: a node and a record."""
    node = pod.headscale.add_node(NAME, user=user, online=False)
    pod.cloudflare.add_record(pod.zone_id, type="A", name=NAME, content=node.address, ttl=60, comment=MARK)


def well_spoken(ended: Ended) -> bool:
    """Whether it said nothing on standard error, and events alone on standard output."""
    return not ended.errors and all(
        {"event", "level", "timestamp"} <= event.keys() and event["event"].count(".") == 1 for event in ended.events
    )


@pytest.mark.parametrize("version", VERSIONS)
def test_a_pods_life_on_every_release(make_pod: Callable[..., Pod], version: str) -> None:
    """Planned, cleaned up, joined, published: with the environment that manifests have."""
    pod = make_pod(version)
    pod.headscale.add_user("svc")
    leave_behind(pod)

    planned = pod.run("--dry-run", "--output", "json", LOG_LEVEL="debug")
    assert planned.status == 0, planned.errors
    assert pod.untouched
    plans = json.loads(planned.out)["plans"]
    changes = [(change["action"], change["kind"]) for change in plans["cleanup"]["changes"]]
    assert changes == [("delete", "node"), ("create", "pre_auth_key"), ("write", "file"), ("delete", "record")]
    assert plans["dns-watch"]["changes"] == []

    cleaned = pod.run("cleanup", LOG_LEVEL="debug")
    assert cleaned.status == 0, cleaned.out
    assert pod.headscale.nodes == []
    assert pod.records() == {}
    assert pod.key_file.read_text() == pod.headscale.keys[-1].key
    assert (cleaned.events[0]["event"], cleaned.last["event"]) == ("settings.loaded", "pass.finished")

    pod.headscale.add_node(NAME, user="svc")
    joined = VpnClient(pod.headscale, key_file=pod.key_file, hostname=NAME).start()
    watched = pod.run("dns-watch", "--once", **SIDECAR, LOG_LEVEL="debug")
    assert watched.status == 0, watched.out
    assert pod.records() == {f"A {joined.addresses[0]}": MARK}

    assert pod.secrets_in(*(text for ended in (planned, cleaned, watched) for text in (ended.out, ended.errors))) == []
    assert well_spoken(cleaned)
    assert well_spoken(watched)


def test_it_is_a_module_too(pod: Pod) -> None:
    ended = pod.start_command(sys.executable, "-m", "lifecycle", "--dry-run", "--output", "json").end()
    assert ended.status == 0
    assert json.loads(ended.out)["context"]["name"] == NAME
    assert pod.untouched


# --- The dry run --------------------------------------------------------------------------------------


def test_a_dry_run_tells_a_person_what_it_looked_at_and_what_would_happen(pod: Pod) -> None:
    leave_behind(pod)
    ended = pod.run("--dry-run", HEADSCALE_USER="svc")
    assert (ended.status, ended.errors) == (0, "")
    for line in (
        f"headscale          {pod.environment['HEADSCALE_URL']}",
        "headscale version  0.28.0",
        "user               svc",
        "zone               example.com",
        f"name               {NAME}",
        f"owner              {MARK}",
        "lifecycle cleanup would",
        f"  delete node 1 (hostname {NAME}, owner svc, registered by auth key, offline)",
        f"  delete A {NAME} -> 100.64.0.1",
        "lifecycle dns-watch would",
        "Nothing was changed.",
    ):
        assert line in ended.out.splitlines()
    assert "\x1b" not in ended.out, "colours are for terminals"
    assert pod.untouched


@pytest.mark.parametrize("command", ["cleanup", "dns-watch"])
@pytest.mark.parametrize("output", ["text", "json"])
def test_a_dry_run_of_one_command_tells_that_ones_plan(pod: Pod, command: str, output: str) -> None:
    ended = pod.run(command, "--dry-run", "--output", output)
    assert ended.status == 0
    told = [name for name in ("cleanup", "dns-watch") if (f'"{name}": {{' in ended.out or f"{name} would" in ended.out)]
    assert told == [command]
    assert pod.untouched


@pytest.mark.parametrize(
    ("command", "others"),
    [
        ("cleanup", {"DNS_TTL": "never", "HEALTH_PORT": "none"}),
        ("dns-watch", {"NODE_POLICY": "keep", "DNS_CLEANUP": "perhaps"}),
    ],
)
def test_a_dry_run_of_one_command_asks_for_no_setting_of_the_other(
    pod: Pod, command: str, others: dict[str, str]
) -> None:
    ended = pod.run(command, "--dry-run", **others)
    assert ended.status == 0, ended.errors
    assert pod.run("--dry-run", **others).status == 2


def test_a_dry_run_says_what_dns_watch_would_change(pod: Pod) -> None:
    node = pod.headscale.add_node(NAME, user="svc")
    pod.cloudflare.add_record(pod.zone_id, type="A", name=NAME, content="100.64.0.99", ttl=60, comment=MARK)
    ended = pod.run("dns-watch", "--dry-run", "--output", "json")
    [change] = json.loads(ended.out)["plans"]["dns-watch"]["changes"]
    assert (change["action"], change["content"], change["was"]) == ("update", node.address, "100.64.0.99")
    assert pod.untouched


# --- One-liners ---------------------------------------------------------------------------------------


def test_the_version_is_told(pod: Pod) -> None:
    assert pod.run("--version").out == f"tailscale-lifecycle {lifecycle.__version__}\n"


def test_help_lists_every_setting(pod: Pod) -> None:
    ended = pod.run("--help")
    assert (ended.status, ended.errors) == (0, "")
    assert [name for name in command_variables(DryRunSettings) if f"  {name}" not in ended.out] == []


@pytest.mark.parametrize("command", ["cleanup", "dns-watch"])
def test_each_command_has_its_help(pod: Pod, command: str) -> None:
    assert pod.run(command, "--help").status == 0


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param([], id="nothing"),
        pytest.param(["clean"], id="no-such-command"),
        pytest.param(["cleanup", "--once"], id="another-commands-option"),
        pytest.param(["cleanup", "--output", "json"], id="output-without-dry-run"),
        pytest.param(["--dry-run", "--output", "yaml"], id="no-such-output"),
        pytest.param(["cleanup", "extra"], id="one-too-many"),
    ],
)
def test_wrong_usage_is_2_and_told_on_standard_error(pod: Pod, arguments: list[str]) -> None:
    ended = pod.run(*arguments)
    assert (ended.status, ended.out) == (2, "")
    assert "usage: lifecycle" in ended.errors
    assert pod.untouched


# --- The watch ----------------------------------------------------------------------------------------


def test_a_watch_publishes_follows_and_stops(pod: Pod) -> None:
    assert pod.run("cleanup").status == 0
    client = VpnClient(pod.headscale, key_file=pod.key_file, hostname=NAME)
    client.start()
    watch = pod.start("dns-watch", HEALTH_PORT="0", POLL_INTERVAL="1s", LOG_LEVEL="debug")
    assert watch.until("record.created")["content"] == client.addresses[0]
    client.change_address()
    assert watch.until("record.updated")["content"] == client.addresses[0]
    command_line = Path(f"/proc/{watch.pid}/cmdline").read_text()
    ended = watch.stop()
    assert ended.status == 0
    assert well_spoken(ended)
    assert pod.records() == {f"A {client.addresses[0]}": MARK}
    assert pod.secrets_in(command_line, ended.out) == []


def test_nothing_is_left_but_the_key_and_its_note(pod: Pod) -> None:
    before = sorted(pod.folder.iterdir())
    assert pod.run("cleanup").status == 0
    assert sorted(pod.folder.iterdir()) == before
    assert pod.files == ["authkey", "authkey.id"]
