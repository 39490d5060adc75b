"""Test that the simulated tailscale container behaves like the real one."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests import releases
from tests.simulators.headscale import HeadscaleSimulator, RegistrationRefusedError
from tests.simulators.serve import serve
from tests.simulators.vpn_client import KeyFileUnusableError, VpnClient, set_address


@pytest.fixture
def headscale() -> HeadscaleSimulator:
    """A server of a release that reports a disconnected node as offline immediately."""
    headscale = HeadscaleSimulator("0.26.1")
    headscale.add_user("svc")
    return headscale


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    return tmp_path / "authkey"


@pytest.mark.parametrize("over_http", [False, True])
def test_client_registers_and_connects(headscale: HeadscaleSimulator, key_file: Path, over_http: bool) -> None:
    # The container ignores white space around the key.
    key_file.write_text(f"\n {headscale.create_key('svc').key} \r\n")
    with serve(headscale) as url:
        client = VpnClient(url if over_http else headscale, key_file=key_file, hostname="grafana")
        node = client.start()
        assert headscale.online(node.id)
        assert [*node.addresses] == [*client.addresses] == ["100.64.0.1", "fd7a:115c:a1e0::1"]
        moved = client.change_address()
        assert moved.addresses == client.addresses != node.addresses
        client.stop()
        assert not headscale.online(node.id)


@pytest.mark.parametrize("content", [None, "", " \n"])
def test_start_without_a_key_is_an_error(headscale: HeadscaleSimulator, key_file: Path, content: str | None) -> None:
    if content is not None:
        key_file.write_text(content)
    with pytest.raises(KeyFileUnusableError):
        VpnClient(headscale, key_file=key_file, hostname="grafana").start()


@pytest.mark.parametrize("over_http", [False, True])
def test_unknown_key_is_refused(headscale: HeadscaleSimulator, key_file: Path, over_http: bool) -> None:
    key_file.write_text("hskey-auth-nonsense")
    with serve(headscale) as url, pytest.raises(RegistrationRefusedError, match="invalid pre auth key"):
        VpnClient(url if over_http else headscale, key_file=key_file, hostname="grafana").start()


@pytest.mark.parametrize("version", releases.DEFAULT)
def test_client_with_state_needs_a_key_only_if_its_node_was_deleted(
    version: str, key_file: Path, tmp_path: Path
) -> None:
    headscale = HeadscaleSimulator(version)
    headscale.add_user("svc")
    key_file.write_text(headscale.create_key("svc").key)
    client = VpnClient(headscale, key_file=key_file, hostname="grafana", state_dir=tmp_path)
    node = client.start()
    client.stop()
    restarted = VpnClient(headscale, key_file=key_file, hostname="grafana", state_dir=tmp_path)
    assert restarted.start().id == node.id
    headscale.delete_node(node.id)
    with pytest.raises(RegistrationRefusedError, match="used"):
        restarted.start()
    key_file.write_text(headscale.create_key("svc").key)
    assert restarted.start().id == node.id + 1
    assert restarted.machine_key == client.machine_key


def test_client_without_state_registers_another_node_at_each_start(
    headscale: HeadscaleSimulator, key_file: Path
) -> None:
    key_file.write_text(headscale.create_key("svc", reusable=True).key)
    client = VpnClient(headscale, key_file=key_file, hostname="grafana")
    assert client.start().id != client.start().id


def interface_addresses(name: str) -> set[str]:
    """Return the global addresses of an interface; none if it does not exist."""
    command = ["ip", "-json", "address", "show", "dev", name]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    interfaces = json.loads(done.stdout) if done.returncode == 0 else []
    addresses = [address for interface in interfaces for address in interface["addr_info"]]
    return {address["local"] for address in addresses if address["scope"] == "global"}


def test_interface_has_only_the_current_addresses(headscale: HeadscaleSimulator, key_file: Path) -> None:
    try:
        set_address("simtest0", "100.64.0.1")
    except OSError as error:
        pytest.skip(f"needs `ip` and CAP_NET_ADMIN: {error}")
    key_file.write_text(headscale.create_key("svc").key)
    client = VpnClient(headscale, key_file=key_file, hostname="grafana", interface="simtest0")
    try:
        client.start()
        client.change_address()
        assert interface_addresses("simtest0") == {"100.64.0.2", "fd7a:115c:a1e0::2"}
    finally:
        client.stop()
    assert interface_addresses("simtest0") == set()
