"""`lifecycle prune` as a process: arguments, exit status and effect."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.builders import MARK, NAME
from tests.process.commands import Pod
from tests.simulators.cloudflare import CloudflareSimulator
from tests.simulators.headscale import HeadscaleSimulator
from tests.simulators.serve import serve

OWNED = {"DNS_OWNER": "default"}


@pytest.fixture
def pod(clean_environment: Mapping[str, str], tmp_path: Path) -> Iterator[Pod]:
    """A pod, a Headscale and a zone with one workload of ours."""
    headscale, cloudflare = HeadscaleSimulator(), CloudflareSimulator()
    with serve(headscale) as headscale_url, serve(cloudflare) as cloudflare_url:
        pod = Pod(
            headscale,
            cloudflare,
            headscale_url=headscale_url,
            cloudflare_url=cloudflare_url,
            base=clean_environment,
            folder=tmp_path,
        )
        headscale.add_user("svc")
        node = headscale.add_node(NAME, user="svc")
        cloudflare.add_record(pod.zone_id, type="A", name=NAME, content=node.address, comment=MARK)
        yield pod


@pytest.mark.parametrize("arguments", [("prune", "--name", NAME), ("prune", "--name", NAME, "--dry-run")])
def test_without_yes_only_the_plan_is_shown(pod: Pod, arguments: tuple[str, ...]) -> None:
    ended = pod.run(*arguments, "--output", "json", **OWNED)
    assert ended.status == 0, ended.errors
    assert NAME in json.dumps(json.loads(ended.out)["plans"])
    assert pod.untouched


def test_with_yes_the_workload_is_removed(pod: Pod) -> None:
    ended = pod.run("prune", "--name", NAME, "--yes", **OWNED)
    assert (ended.status, ended.errors) == (0, ""), ended.out
    assert pod.headscale.nodes == []
    assert pod.records() == {}


@pytest.mark.sample(1)
@pytest.mark.parametrize(
    ("arguments", "variables", "status", "names"),
    [
        pytest.param(("--name", "nothing", "--yes"), OWNED, 1, "DNS_OWNER", id="unknown-name"),
        pytest.param(("--name", NAME, "--yes"), {}, 2, "DNS_OWNER", id="no-owner"),
        pytest.param(("--yes", "--dry-run"), OWNED, 2, "--yes", id="yes-and-dry-run"),
        pytest.param(
            ("--name", NAME, "--yes"), OWNED | {"HEADSCALE_API_KEY": "wrong"}, 1, "HEADSCALE_API_KEY", id="refused-key"
        ),
    ],
)
def test_invalid_request_changes_nothing(
    pod: Pod, arguments: tuple[str, ...], variables: dict[str, str], status: int, names: str
) -> None:
    ended = pod.run("prune", *arguments, **variables)
    assert ended.status == status, ended.out + ended.errors
    assert names in ended.out + ended.errors
    assert pod.untouched
