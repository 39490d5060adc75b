"""Test `lifecycle prune` as a process: its arguments, exit status and effect."""

from __future__ import annotations

import json

import pytest

from tests.builders import NAME
from tests.process.commands import Pod

OWNER_SETTING = {"DNS_OWNER": "default"}


@pytest.fixture
def pod(pod: Pod) -> Pod:
    """A pod with simulators of Headscale and Cloudflare, which have the node and the record of one workload."""
    pod.add_workload()
    return pod


@pytest.mark.parametrize("arguments", [("prune", "--name", NAME), ("prune", "--name", NAME, "--dry-run")])
def test_without_yes_only_the_plan_is_shown(pod: Pod, arguments: tuple[str, ...]) -> None:
    result = pod.run(*arguments, "--output", "json", **OWNER_SETTING)
    assert result.status == 0, result.stderr
    assert NAME in json.dumps(json.loads(result.stdout)["plans"])
    assert pod.has_no_writes


@pytest.mark.parametrize("is_online", [True, False])
def test_plan_reports_that_no_node_is_online(pod: Pod, is_online: bool) -> None:
    if not is_online:
        pod.headscale.restart()
    result = pod.run("prune", "--output", "json", **OWNER_SETTING)
    assert result.status == 0, result.stderr
    plan = json.loads(result.stdout)["plans"]["prune"]
    assert plan["changes"] == []
    assert bool(plan["notes"]) != is_online


def test_with_yes_the_workload_is_removed(pod: Pod) -> None:
    result = pod.run("prune", "--name", NAME, "--yes", **OWNER_SETTING)
    assert (result.status, result.stderr) == (0, ""), result.stdout
    assert pod.headscale.nodes == []
    assert pod.records() == {}


@pytest.mark.max_cases_without_full(1)
@pytest.mark.parametrize(
    ("arguments", "variables", "status", "expected_text"),
    [
        pytest.param(("--name", "nothing", "--yes"), OWNER_SETTING, 1, "DNS_OWNER", id="unknown-name"),
        pytest.param(("--name", NAME, "--yes"), {}, 2, "DNS_OWNER", id="no-owner"),
        pytest.param(("--yes", "--dry-run"), OWNER_SETTING, 2, "--yes", id="yes-and-dry-run"),
        pytest.param(
            ("--name", NAME, "--yes"),
            OWNER_SETTING | {"HEADSCALE_API_KEY": "wrong"},
            1,
            "HEADSCALE_API_KEY",
            id="refused-key",
        ),
    ],
)
def test_invalid_request_changes_nothing(
    pod: Pod, arguments: tuple[str, ...], variables: dict[str, str], status: int, expected_text: str
) -> None:
    result = pod.run("prune", *arguments, **variables)
    assert result.status == status, result.stdout + result.stderr
    assert expected_text in result.stdout + result.stderr
    assert pod.has_no_writes
