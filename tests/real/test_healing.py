"""A node is taken away from under a real client, and the pod comes back by itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest

from tests.probe import BUSYBOX, NO_BUSYBOX, Probe
from tests.real.command import Watch, named
from tests.real.machine import Machine
from tests.real.programs import Release, eventually, free_ports
from tests.real.server import HeadscaleServer
from tests.real.service import OTHER_USER, USER, Service
from tests.simulators.cloudflare import CloudflareSimulator
from tests.simulators.serve import serve

# To be sure takes a minute by design; a machine with other things to do takes longer.
CONFIRMED_S = 150.0

# On which servers: each costs that minute. The others differ in nothing that counts here.
CHOSEN = ("0.28.0", "head")


pytestmark = pytest.mark.skipif(BUSYBOX is None, reason=NO_BUSYBOX)


@pytest.fixture(params=CHOSEN)
def chosen_server(
    request: pytest.FixtureRequest, releases: list[Release], short_folder: Path
) -> Iterator[HeadscaleServer]:
    """A server of one of these releases, or of the only one that is installed."""
    names = {release.name: release for release in releases}
    release = names.get(request.param) or (releases[-1] if request.param == CHOSEN[0] else None)
    if release is None:
        pytest.skip(f"needs headscale-{request.param}")
    folder = short_folder / "server"
    folder.mkdir()
    with HeadscaleServer(release, folder) as server:
        server.create_user(USER)
        server.create_user(OTHER_USER)
        yield server


class Pod:
    """A service's pod with both containers, and the kubelet that looks after one of them."""

    def __init__(self, name: str, *, stack: ExitStack, server: HeadscaleServer, folder: Path) -> None:
        folder.mkdir()
        cloudflare = CloudflareSimulator()
        self.service = stack.enter_context(
            Service(
                name,
                server=server,
                cloudflare=cloudflare,
                cloudflare_url=stack.enter_context(serve(cloudflare)),
                folder=folder,
            )
        )
        self.service.cleanup()
        self.machine: Machine = self.service.machine()
        (self.port,) = free_ports(1)
        self.watch: Watch = self.service.watch(SELF_HEAL="true", HEALTH_PORT=str(self.port), HEALTH_ADDRESS="127.0.0.1")
        self.service.publishes(self.machine)
        self.first_key = self.service.key_file.read_text()
        self.first_address = self.machine.address
        (self.first_id,) = self.service.ids
        self.writes = len(cloudflare.writes)

    @property
    def nodez(self) -> tuple[int, str]:
        """Status and state."""
        answer = httpx.get(f"http://127.0.0.1:{self.port}/nodez", timeout=30, trust_env=False)
        return answer.status_code, answer.json()["state"]

    def restart_by(self, probe: Probe) -> None:
        """Do what the kubelet does: wait until the probe fails, and restart the container then."""
        eventually(lambda: probe.fails(self.port), "the probe to fail", patience_s=CONFIRMED_S)
        assert self.service.key_file.read_text() != self.first_key
        # What the record says is left alone for as long as there is nothing better.
        assert (self.service.contents, len(self.service.cloudflare.writes)) == ([self.first_address], self.writes)
        self.machine.restart()
        self.machine.up(self.service.key_file)
        self.watch.said("node.returned")


def test_healing(chosen_server: HeadscaleServer, short_folder: Path) -> None:
    """One node is deleted and another one expires, while their clients are connected; both pods come back.

    Up to 0.29.3 the client of a deleted node is not told: it believes that it is connected.
    """
    server = chosen_server
    with ExitStack() as stack:
        # A list without anybody else would say nothing.
        probe = Probe(short_folder / "bin")
        deleted = Pod("deleted.example.com", stack=stack, server=server, folder=short_folder / "d")
        expired = Pod("expired.example.com", stack=stack, server=server, folder=short_folder / "e")
        assert not probe.fails(deleted.port)

        server.delete_node(deleted.first_id)
        server.ask("POST", f"/api/v1/node/{expired.first_id}/expire").raise_for_status()
        deleted.restart_by(probe)
        expired.restart_by(probe)

        (new_id,) = deleted.service.ids
        assert int(new_id) > int(deleted.first_id)
        deleted.service.publishes(deleted.machine)
        assert deleted.service.ids == [new_id]
        assert expired.service.ids == [expired.first_id]
        expired.service.publishes(expired.machine)
        assert expired.machine.address == expired.first_address
        assert len(expired.service.cloudflare.writes) == expired.writes
        for pod in (deleted, expired):
            assert pod.nodez == (200, "registered")
            assert not probe.fails(pod.port)
            assert [event["node_id"] for event in named(pod.watch.events, "node.lost")] == [pod.first_id]
            assert len(named(pod.watch.events, "pre_auth_key.created")) == 1
            assert pod.watch.stopped() == 0


def test_api_key_expiry(service: Service) -> None:
    """Each server lists its API keys in a way that tells which is ours."""
    (port,) = free_ports(1)
    service.cleanup()
    service.machine()
    watch = service.watch(HEALTH_PORT=str(port), HEALTH_ADDRESS="127.0.0.1")
    watch.said("pass.finished")
    metrics = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=30, trust_env=False).text
    (line,) = [line for line in metrics.splitlines() if line.startswith("tailscale_lifecycle_api_key_expiration")]
    days = (float(line.split()[1]) - datetime.now(UTC).timestamp()) / 86_400
    assert days == pytest.approx(90, abs=0.1)
    assert not named(watch.events, "api_key.expiring")
