"""`lifecycle prune` as a process: what the command line makes of it, and how it ends."""

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
    """Beside a Headscale and a zone that have one service of ours."""
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
def test_without_yes_the_plan_is_shown_and_nothing_done(pod: Pod, arguments: tuple[str, ...]) -> None:
    ended = pod.run(*arguments, "--output", "json", **OWNED)
    assert ended.status == 0, ended.errors
    assert NAME in json.dumps(json.loads(ended.out)["plans"])
    assert pod.untouched


def test_with_yes_it_is_done(pod: Pod) -> None:
    ended = pod.run("prune", "--name", NAME, "--yes", **OWNED)
    assert (ended.status, ended.errors) == (0, ""), ended.out
    assert pod.headscale.nodes == []
    assert pod.records() == {}


@pytest.mark.parametrize(
    ("arguments", "variables", "status", "told"),
    [
        pytest.param(
            ("--name", "nothing", "--yes"), OWNED, 1, "is DNS_OWNER that of the service?", id="no-such-service"
        ),
        pytest.param(("--name", NAME, "--yes"), {}, 2, "DNS_OWNER: is required", id="no-owner"),
        pytest.param(("--yes", "--dry-run"), OWNED, 2, "give one of them", id="both"),
        pytest.param(
            ("--name", NAME, "--yes"), OWNED | {"HEADSCALE_API_KEY": "wrong"}, 1, "refused the API key", id="refused"
        ),
    ],
)
def test_what_it_cannot_do_ends_it(
    pod: Pod, arguments: tuple[str, ...], variables: dict[str, str], status: int, told: str
) -> None:
    ended = pod.run("prune", *arguments, **variables)
    assert ended.status == status, ended.out + ended.errors
    assert told in ended.out + ended.errors
    assert pod.untouched
