"""A name with two pods, and a lost node, through Headscale's command line.

The cases of healing over HTTP count looks by their seconds, and tell the answer about one node from the list. Over
exec there are fewer looks, and the list is both: it has cases of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from tests.dns_watch import test_heal, test_standing_down
from tests.dns_watch.pods import Pod
from tests.dns_watch.test_heal import a_pod, delete_node, not_found_and_a_short_list, published
from tests.in_cluster import ClusterWorld, cluster_world
from tests.simulators.faults import stale
from tests.simulators.headscale_cli import Finished
from tests.simulators.kubernetes import ExecFault
from tests.world import names

POLLS: Final = "waits for looks as often as HTTP makes them; see the cases below"

NOT_HERE: Final = {
    "test_a_successor_that_comes_late_ends_healing": POLLS,
    "test_a_list_that_is_short_for_a_moment_restarts_no_superseded_pod": POLLS,
    "test_two_pods_that_start_at_once": POLLS,
    "test_an_old_pod_that_forgot_its_node_does_not_come_back": "an hour of looks every 10 s, in which the note decides",
}

CASES: Final = {name: case for name, case in vars(test_standing_down).items() if name.startswith("test_")}

globals().update({name: case for name, case in CASES.items() if name not in NOT_HERE})


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ClusterWorld]:
    with cluster_world(monkeypatch, tmp_path) as world:
        world.headscale.add_node("laptop", user="svc", registered_by="cli")
        yield world


def test_nothing_is_left_out_that_is_not_there() -> None:
    assert NOT_HERE.keys() <= CASES.keys()


@pytest.mark.parametrize("version", test_heal.VERSIONS)
@pytest.mark.parametrize("loss", ["gone", "expired"])
def test_a_lost_node_comes_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, version: str, loss: str) -> None:
    with cluster_world(monkeypatch, tmp_path, version) as world:
        world.headscale.add_node("laptop", user="svc", registered_by="cli")
        pod = a_pod(world, tmp_path / "pod")
        old_key = pod.key
        if loss == "gone":
            delete_node(pod)
        else:
            world.headscale.expire_node(pod.node_id)
        pod.run_until((loss, True), within_s=600)
        assert pod.key != old_key
        pod.join()
        pod.run_until(("registered", False), within_s=180)
        pod.run(600)
        assert published(world) == [pod.address]


@pytest.mark.parametrize(
    "written",
    [
        pytest.param(b"null", id="no-node"),
        pytest.param(b"[]", id="an-empty-list"),
        pytest.param(b"", id="nothing"),
        pytest.param(b"<html>", id="a-page"),
    ],
)
def test_what_says_nothing_heals_nobody(world: ClusterWorld, tmp_path: Path, events: list[Any], written: bytes) -> None:
    pod = a_pod(world, tmp_path / "pod")
    key, writes = pod.key, len(world.cloudflare.writes)
    world.kubernetes.spoil(ExecFault(instead=Finished(stdout=written)), "nodes list", times=None)
    pod.run(3600)
    assert pod.nodez[1] is False
    assert (pod.key, len(world.cloudflare.writes)) == (key, writes)
    assert "node.lost" not in names(events)


def test_lists_that_stay_short_cost_a_key_and_no_more(world: ClusterWorld, tmp_path: Path) -> None:
    """Headscale's list is all there is to go by: who is missing from all of several in a row gets a fresh key."""
    pod = a_pod(world, tmp_path / "pod")
    writes = len(world.cloudflare.writes)
    not_found_and_a_short_list(world)
    pod.run_until(("gone", True), within_s=600)
    assert (published(world), len(world.cloudflare.writes)) == ([pod.address], writes)
    world.headscale.faults.clear()
    pod.run(600)
    assert pod.nodez == ("registered", False)
    assert len(world.headscale.nodes) == 2


def test_two_records_made_at_once_become_the_later_pods(world: ClusterWorld, tmp_path: Path) -> None:
    earlier, later = (Pod(world, tmp_path / name) for name in ("earlier", "later"))
    for pod in (earlier, later):
        pod.cleanup()
    for pod in (earlier, later):
        pod.join()
    world.cloudflare.faults.add(stale(), method="GET", path="dns_records", after=1)
    world.run_together(earlier.watch, later.watch, seconds=2)
    assert len(published(world)) == 2
    world.run_together(earlier.watch, later.watch, seconds=150)
    assert published(world) == [later.address]
    world.run_together(earlier.watch, later.watch, seconds=3600)
    assert (earlier.nodez[0], later.nodez[0]) == ("superseded", "registered")
