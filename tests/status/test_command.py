"""Test the report and the exit status of `lifecycle status`, which must change nothing and show no secrets."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from lifecycle.dry_run import status_report
from lifecycle.runtime.retry import no_retries
from lifecycle.settings.models import StatusSettings
from lifecycle.status.assess import Row, State
from lifecycle.status.report import make_shortener, needs_action, to_json_values, to_text
from tests.builders import NAME, OUR_COMMENT
from tests.process.commands import Pod
from tests.simulators import faults
from tests.world import USER, World


@pytest.fixture
def world(world: World) -> World:
    """Simulated servers with two users, and with a workload whose node and record match."""
    world.headscale.add_user("annabel")
    world.add_record(world.headscale.add_node(NAME, user=USER).address, ttl=60, comment=OUR_COMMENT)
    return world


OWNER = OUR_COMMENT.partition(" ")[2]


def add_foreign_objects(world: World) -> None:
    """Add a workload with a record of another tool, and a workload with a node of another user."""
    world.headscale.add_node("wiki.example.com", user=USER)
    world.add_record("192.0.2.55", name="wiki.example.com", comment="by opentofu: annabel \u0410\u043d\u043d\u0430")
    world.add_record(
        world.headscale.add_node("tools", user="annabel").address, name="tools.example.com", comment=OUR_COMMENT
    )


def report_on(world: World, variables: Mapping[str, str] | None = None, *, redact: bool = False) -> dict[str, Any]:
    """Return the report. Check that it contains no secret, and that the clients, which can write, changed nothing."""
    defaults = {"HEADSCALE_USER": USER, "DNS_OWNER": OWNER}
    settings = world.settings(StatusSettings, **(defaults | dict(variables or {})))
    clients = world.writers(settings, no_retries())
    report = status_report(settings, clients, cluster=None, now=world.clock.now(), redact=redact)
    printed = to_text(report) + json.dumps(report)
    for secret in [*world.headscale.secrets(), world.headscale.api_key, world.cloudflare.token]:
        assert secret not in printed
    assert not world.headscale.writes
    assert not world.cloudflare.writes
    return report


def states(report: dict[str, Any]) -> dict[str, str]:
    return {row["name"]: row["state"] for row in report["workloads"]}


def test_context_shows_what_was_read(world: World) -> None:
    report = report_on(world)
    assert {"headscale_version": "0.28.0", "user": USER, "zone": "example.com", "owner": OUR_COMMENT}.items() <= report[
        "context"
    ].items()
    assert not needs_action(report)
    assert all(str(value) in to_text(report) for value in report["context"].values())


def test_row_shows_node_and_record(world: World) -> None:
    [row] = report_on(world)["workloads"]
    node = world.headscale.nodes[0]
    assert row["records"] == [{"type": "A", "content": node.address}]
    assert (row["node_id"], row["online"], row["addresses"]) == (str(node.id), True, list(node.addresses))


def test_advice_is_in_both_formats(world: World) -> None:
    add_foreign_objects(world)
    report = report_on(world)
    assert states(report) == {
        NAME: "in sync",
        "tools.example.com": "foreign node",
        "wiki.example.com": "foreign record",
    }
    assert needs_action(report)
    output = " ".join(to_text(report).split())
    for row in (row for row in report["workloads"] if row["name"] != NAME):
        assert row["advice"] in output
        assert row["in_the_way"] in output


@pytest.mark.parametrize("upstream", ["headscale", "cloudflare"])
def test_workload_is_shown_if_an_upstream_fails(world: World, upstream: str) -> None:
    getattr(world, upstream).faults.add(faults.html(502), times=None)
    report = report_on(world)
    assert states(report) == {NAME: "unknown"}
    assert needs_action(report)
    assert len(report["problems"]) == 1
    # The report has the time of Headscale if Headscale responds.
    assert ("Headscale" in report["context"]["clock"]) == (upstream == "cloudflare")


def test_redacted_report_contains_no_name_and_no_address(world: World) -> None:
    add_foreign_objects(world)
    # With each of these settings, the report contains other advice or problems.
    for name, value in (
        ("DNS_IPV6", "true"),
        ("HEADSCALE_USER", "isidora"),
        ("HEADSCALE_USER", ""),
        ("DOMAIN_NAME", "example.org"),
    ):
        settings = {name: value}
        full, redacted = report_on(world, settings), report_on(world, settings, redact=True)
        assert [row["state"] for row in redacted["workloads"]] == [row["state"] for row in full["workloads"]]
        output = to_text(redacted) + json.dumps(redacted)
        names = ["grafana", "wiki", "tools", "example", "annabel", "opentofu", "isidora", "\u043d\u043d\u0430", OWNER]
        addresses = [address for node in world.headscale.nodes for address in node.addresses]
        assert [word for word in [*names, *addresses, "192.0.2.55"] if word in output] == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("7days.example.com", "7d*.ex*.co*", id="name that begins with a digit"),
        pytest.param("ip-10-0-0-1.2fa.io, 10-0-0-1.io", "ip*.2f*.io, 10*.io", id="names with numbers"),
        pytest.param("at https://1and1.com:443", "at https://1a*.co*:443", id="URL"),
        pytest.param("1.2.3.4:80, 100.64.0.0/10", "1.2.*.*:80, 100.64.*.*/10", id="IPv4"),
        pytest.param("fd7a:115c:a1e0::1", "fd7a:*", id="IPv6"),
        pytest.param("0.28.0 at 2026-11-29T00:10:49Z", "0.28.0 at 2026-11-29T00:10:49Z", id="version and time"),
    ],
)
def test_names_and_addresses_are_shortened(text: str, expected: str) -> None:
    assert make_shortener([])(text) == expected


def test_addresses_in_the_description_of_a_foreign_record_are_shortened() -> None:
    text = "AAAA 2001:470:1f0b:10::5 (comment: router); A 192.0.2.5 (comment: none)"
    assert make_shortener([text])(text) == "AA* 2001:* (co*: ro*); A 192.0.*.* (co*: no*)"


@pytest.mark.parametrize("character", ["\x1b", "\n", "\u202e"])
def test_text_of_foreign_objects_cannot_control_the_terminal(character: str) -> None:
    def report_with(value: str) -> str:
        return to_text(
            to_json_values({"user": value}, [Row(value, State.FOREIGN_RECORD, in_the_way=value, advice=value)], [value])
        )

    assert report_with(f"a{character}b").count(character) == report_with("ab").count(character)


@pytest.fixture
def pod(pod: Pod) -> Pod:
    """A pod with simulators of Headscale and Cloudflare, with one workload whose node and record match."""
    pod.add_workload()
    return pod


# The variables that the manifests set in the container of dns-watch, in which `status` can also run.
POD_VARIABLES = {"POD_NAME": "grafana-0", "POD_NAMESPACE": "default"}


def test_exit_status_shows_whether_manual_action_is_needed(pod: Pod) -> None:
    in_sync = pod.run("status", "--output", "json", **POD_VARIABLES)
    assert (in_sync.status, in_sync.stderr) == (0, ""), in_sync.stdout
    assert states(json.loads(in_sync.stdout)) == {NAME: "in sync"}

    pod.headscale.delete_node(pod.headscale.nodes[0].id)
    without_node = pod.run("status", "--redact", **POD_VARIABLES)
    assert (without_node.status, without_node.stderr) == (1, ""), without_node.stdout
    # The first column of the table.
    assert "NAME" in without_node.stdout
    assert NAME not in without_node.stdout
    assert pod.has_no_writes


@pytest.mark.parametrize(
    ("arguments", "variables"),
    [
        pytest.param((), {"POD_NAMESPACE": ""}, id="unknown owner"),
        pytest.param(("--dry-run",), {}, id="--dry-run"),
        pytest.param(("--once",), {}, id="--once"),
    ],
)
def test_invalid_request_is_a_usage_error(pod: Pod, arguments: tuple[str, ...], variables: dict[str, str]) -> None:
    assert pod.run("status", *arguments, **(POD_VARIABLES | variables)).status == 2
    assert pod.has_no_writes
