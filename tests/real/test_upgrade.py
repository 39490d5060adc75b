"""Upgrades of the server while commands are running."""

from __future__ import annotations

from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path

import pytest

from tests.real.programs import Release, eventually
from tests.real.server import HeadscaleServer
from tests.real.workload import OTHER_USER, USER, Workload
from tests.simulators.cloudflare import CloudflareSimulator
from tests.simulators.serve import serve


def test_node_and_record_survive_upgrades(
    releases: list[Release], cloudflare: CloudflareSimulator, short_folder: Path
) -> None:
    """The server is upgraded from the oldest installed release to the newest, with one database.

    If a release refuses the API key of an older one, the new key is read from its file.
    """
    if len(releases) == 1:
        pytest.skip("needs more than one release of headscale; see HEADSCALE_BINARIES")
    with ExitStack() as stack:
        (short_folder / "server").mkdir()
        server = stack.enter_context(HeadscaleServer(releases[0], short_folder / "server"))
        server.create_user(USER)
        server.create_user(OTHER_USER)
        workload = stack.enter_context(
            Workload(
                "app.example.com",
                server=server,
                cloudflare=cloudflare,
                cloudflare_url=stack.enter_context(serve(cloudflare)),
                folder=short_folder,
            )
        )
        api_key_file = short_folder / "api_key"
        api_key_file.write_text(server.api_key)
        from_file = {"HEADSCALE_API_KEY": "", "HEADSCALE_API_KEY_FILE": str(api_key_file)}
        workload.cleanup(**from_file)
        machine = workload.machine()
        watch = workload.watch(**from_file)
        workload.wait_until_published(machine)
        ids, address, written = workload.ids, machine.address, len(cloudflare.writes)
        for _, release in pairwise(releases):
            server.restart(release)
            if not server.accepts_api_key:
                watch.wait_for_next("pass.failed", error_type="AuthError")
                api_key_file.write_text(server.renew_api_key())
            watch.wait_for_next("pass.finished", changes=0, in_sync=True)
            eventually(lambda: server.nodes(workload.name)[0]["online"], "the client to be online")
            watch.wait_for_next("pass.finished", changes=0, in_sync=True)
            assert (workload.ids, machine.address, len(cloudflare.writes)) == (ids, address, written), release.name

        # The newest release accepts the key of the oldest one, and `cleanup` deletes the node of that release.
        machine.restart_logged_in()
        assert machine.login_error(workload.key_file) is None
        assert workload.ids == ids
        watch.terminate()
        workload.cleanup(**from_file)
        assert workload.ids == []
        machine.reset()
        machine.up(workload.key_file)
        workload.watch(**from_file)
        workload.wait_until_published(machine)
