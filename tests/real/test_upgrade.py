"""The server is upgraded, release by release, under commands that run."""

from __future__ import annotations

from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path

import pytest

from tests.real.programs import Release, eventually
from tests.real.server import HeadscaleServer
from tests.real.service import OTHER_USER, USER, Service
from tests.simulators.cloudflare import CloudflareSimulator
from tests.simulators.serve import serve


def test_upgrades(releases: list[Release], cloudflare: CloudflareSimulator, short_folder: Path) -> None:
    """From the oldest release that is here to the newest, with one database: the node stays ours, the record right.

    Where a release refuses the API key of an older one, a new key in its file is enough.
    """
    if len(releases) == 1:
        pytest.skip("needs more than one release of headscale; see HEADSCALE_BINARIES")
    with ExitStack() as stack:
        (short_folder / "server").mkdir()
        server = stack.enter_context(HeadscaleServer(releases[0], short_folder / "server"))
        server.create_user(USER)
        server.create_user(OTHER_USER)
        service = stack.enter_context(
            Service(
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
        service.cleanup(**from_file)
        machine = service.machine()
        watch = service.watch(**from_file)
        service.publishes(machine)
        ids, address, written = service.ids, machine.address, len(cloudflare.writes)
        for _, release in pairwise(releases):
            server.restart(release)
            if not server.takes_api_key:
                watch.next("pass.failed", error_type="AuthError")
                api_key_file.write_text(server.renew_api_key())
            watch.next("pass.finished", changes=0, in_sync=True)
            eventually(lambda: server.nodes(service.name)[0]["online"], "the client to be back")
            watch.next("pass.finished", changes=0, in_sync=True)
            assert (service.ids, machine.address, len(cloudflare.writes)) == (ids, address, written), release.name

        # A key of the oldest release is shown to the newest, and what that release made is cleaned up.
        machine.restart_logged_in()
        assert machine.login_error(service.key_file) is None
        assert service.ids == ids
        watch.stopped()
        service.cleanup(**from_file)
        assert service.ids == []
        machine.forget()
        machine.up(service.key_file)
        service.watch(**from_file)
        service.publishes(machine)
