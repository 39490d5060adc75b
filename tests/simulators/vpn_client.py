"""A simulated tailscale container. It reads the key file, registers, connects, and adds its addresses to an interface.

If this module is run as a program, it simulates one container until it receives SIGTERM.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.simulators.headscale import HeadscaleSimulator, NodeGoneError, RegistrationRefusedError

STATE_FILE = "tailscaled.state"
TIMEOUT_S = 10.0


class KeyFileUnusableError(Exception):
    """The key file is missing or empty. The real container would exit or wait forever."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """The state that a tailscale client stores in a file."""

    machine_key: str
    node_key: str
    node_id: int | None = None

    @classmethod
    def new(cls) -> Identity:
        """Return the state of a machine that has never registered."""
        source = random.SystemRandom()
        machine_key, node_key = (f"{source.getrandbits(256):064x}" for _ in range(2))
        return cls(machine_key=f"mkey:{machine_key}", node_key=f"nodekey:{node_key}")


@dataclass(frozen=True, slots=True, kw_only=True)
class RegisteredNode:
    """A node in the server's response to a registration."""

    node_id: int
    addresses: tuple[str, ...]


class _LocalServer:
    """A simulated Headscale in this process."""

    def __init__(self, simulator: HeadscaleSimulator) -> None:
        self._simulator = simulator

    def register(self, key: str | None, hostname: str, identity: Identity) -> RegisteredNode:
        node = self._simulator.register(
            key=key, hostname=hostname, machine_key=identity.machine_key, node_key=identity.node_key
        )
        return RegisteredNode(node_id=node.id, addresses=node.addresses)

    def connect(self, node_id: int) -> None:
        self._simulator.connect(node_id)

    def disconnect(self, node_id: int, *, silently: bool) -> None:
        self._simulator.disconnect(node_id, silently=silently)

    def readdress(self, node_id: int) -> RegisteredNode:
        if self._simulator.node(node_id) is None:
            raise NodeGoneError("node not found")
        return RegisteredNode(node_id=node_id, addresses=self._simulator.readdress(node_id).addresses)


class _RemoteServer:
    """A simulated Headscale that is served on loopback. It has endpoints for this class, such as /sim/register."""

    def __init__(self, url: str) -> None:
        self._url = url

    def _post(self, path: str, body: dict[str, Any]) -> httpx.Response:
        response = httpx.post(f"{self._url}/sim/{path}", json=body, timeout=TIMEOUT_S)
        if response.status_code == httpx.codes.NOT_FOUND:
            raise NodeGoneError(response.text)
        if response.status_code == httpx.codes.UNAUTHORIZED:
            raise RegistrationRefusedError(response.text)
        return response.raise_for_status()

    def register(self, key: str | None, hostname: str, identity: Identity) -> RegisteredNode:
        body = {
            "key": key,
            "hostname": hostname,
            "machineKey": identity.machine_key,
            "nodeKey": identity.node_key,
        }
        return self._registered(self._post("register", body))

    def connect(self, node_id: int) -> None:
        self._post("connect", {"nodeId": node_id})

    def disconnect(self, node_id: int, *, silently: bool) -> None:
        # A test can have stopped the server.
        with suppress(httpx.TransportError):
            self._post("disconnect", {"nodeId": node_id, "silently": silently})

    def readdress(self, node_id: int) -> RegisteredNode:
        return self._registered(self._post("readdress", {"nodeId": node_id}))

    def _registered(self, response: httpx.Response) -> RegisteredNode:
        node = response.json()
        return RegisteredNode(node_id=int(node["id"]), addresses=tuple(node["ipAddresses"]))


class VpnClient:
    """One tailscale container."""

    def __init__(
        self,
        control: HeadscaleSimulator | str,
        *,
        key_file: Path,
        hostname: str,
        state_dir: Path | None = None,
        auth_once: bool = True,
        interface: str | None = None,
        netns: str | None = None,
    ) -> None:
        """Configure the container. `start` starts it.

        Args:
            control: a simulated Headscale in this process, or the URL of one.
            key_file: the path in `TS_AUTHKEY=file:`.
            hostname: `TS_HOSTNAME`.
            state_dir: the folder of the state; None = the client registers as a new machine at each start.
            auth_once: `TS_AUTH_ONCE`. If True, a client that has a node sends the key only if the server refuses it.
            interface: the interface that gets the node's addresses, such as `tailscale0`; None = no interface.
            netns: the network namespace of the interface; None = that of this process.
        """
        self._server = _RemoteServer(control) if isinstance(control, str) else _LocalServer(control)
        self._key_file = key_file
        self._hostname = hostname
        self._state_dir = state_dir
        self._auth_once = auth_once
        self._interface = interface
        self._netns = netns
        self._identity = Identity.new()
        self.addresses: tuple[str, ...] = ()

    @property
    def node_id(self) -> int | None:
        """The id of the client's node; None if it has never registered."""
        return self._identity.node_id

    @property
    def machine_key(self) -> str:
        """The client's machine key, including the prefix `mkey:`."""
        return self._identity.machine_key

    def start(self) -> RegisteredNode:
        """Start the container: register, connect, and add the addresses to the interface.

        Raises:
            KeyFileUnusableError: a key is needed, and the file does not contain one.
            RegistrationRefusedError: the server refused the registration.
        """
        self._identity = self._load()
        node = self._register()
        self._identity = Identity(
            machine_key=self._identity.machine_key, node_key=self._identity.node_key, node_id=node.node_id
        )
        self._save()
        self._server.connect(node.node_id)
        self._set_addresses(node)
        return node

    def change_address(self) -> RegisteredNode:
        """Let the server assign new addresses, and replace the addresses of the interface.

        Raises:
            NodeGoneError: the node was deleted.
        """
        if self.node_id is None:
            raise NodeGoneError("not registered")
        node = self._server.readdress(self.node_id)
        self._set_addresses(node)
        return node

    def stop(self, *, cleanly: bool = True) -> None:
        """Stop the container.

        Args:
            cleanly: False = the container is killed, and the server reports its node as online for another 15 minutes.
        """
        if self.node_id is not None:
            self._server.disconnect(self.node_id, silently=not cleanly)
        if self._interface is not None:
            remove_interface(self._interface, netns=self._netns)
        self.addresses = ()

    def _register(self) -> RegisteredNode:
        """Register. With TS_AUTH_ONCE, a client that has a node first tries to register without the key."""
        if self._auth_once and self._identity.node_id is not None:
            try:
                return self._server.register(None, self._hostname, self._identity)
            except RegistrationRefusedError:
                pass  # Tailscale's state is NeedsLogin, so the container sends the key.
        return self._server.register(self._key(), self._hostname, self._identity)

    def _key(self) -> str:
        try:
            key = self._key_file.read_text(encoding="utf-8").strip()
        except OSError as error:
            raise KeyFileUnusableError(f"cannot read the key file: {error.strerror}") from error
        if not key:
            raise KeyFileUnusableError("the key file is empty: the container would wait forever")
        return key

    def _set_addresses(self, node: RegisteredNode) -> None:
        self.addresses = node.addresses
        if self._interface is not None:
            for address in node.addresses:
                set_address(self._interface, address, netns=self._netns)

    def _load(self) -> Identity:
        if self._state_dir is None:
            return Identity.new()
        path = self._state_dir / STATE_FILE
        return Identity(**json.loads(path.read_text(encoding="utf-8"))) if path.exists() else Identity.new()

    def _save(self) -> None:
        if self._state_dir is not None:
            (self._state_dir / STATE_FILE).write_text(json.dumps(asdict(self._identity)), encoding="utf-8")


def _ip(netns: str | None, *arguments: str) -> subprocess.CompletedProcess[str]:
    program = shutil.which("ip") or "/sbin/ip"
    command = [program, *(() if netns is None else ("-n", netns)), *arguments]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=TIMEOUT_S)


CREATE_COMMANDS = ("tuntap add mode tun dev {}", "link add name {} type dummy", "link add name {} type bridge")
"""Commands that create an interface, the most realistic first. Not every kernel supports every type of interface."""


def set_address(interface: str, address: str, netns: str | None = None) -> None:
    """Replace an interface's addresses of one family (IPv4 or IPv6). Create the interface if it does not exist.

    This requires CAP_NET_ADMIN and the program `ip`.

    Raises:
        OSError: `ip` failed.
    """
    _create_interface(interface, netns)
    if ":" in address:
        _run_ip(netns, "-6", "address", "flush", "dev", interface, "scope", "global")
        _run_ip(netns, "address", "add", f"{address}/128", "dev", interface, "nodad")
    else:
        _run_ip(netns, "-4", "address", "flush", "dev", interface)
        _run_ip(netns, "address", "add", f"{address}/32", "dev", interface)
    _run_ip(netns, "link", "set", interface, "up")


def _create_interface(interface: str, netns: str | None) -> None:
    if _ip(netns, "link", "show", "dev", interface).returncode == 0:
        return
    errors = []
    for command in CREATE_COMMANDS:
        done = _ip(netns, *command.format(interface).split())
        if done.returncode == 0:
            return
        errors.append(done.stderr.strip())
    raise OSError("; ".join(errors))


def _run_ip(netns: str | None, *arguments: str) -> None:
    done = _ip(netns, *arguments)
    if done.returncode != 0:
        raise OSError(done.stderr.strip())


def remove_interface(interface: str, netns: str | None = None) -> None:
    """Delete the interface, if it exists."""
    _ip(netns, "link", "delete", interface)


def main(arguments: list[str] | None = None) -> int:
    """Run one client until SIGTERM.

    When it is connected, it prints a line of JSON with `nodeId` and `addresses`.

    Returns:
        The exit status: 0 = stopped by a signal, 1 = it could not register.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--control", required=True, metavar="URL", help="URL of the simulated Headscale")
    parser.add_argument("--key-file", required=True, type=Path, metavar="PATH")
    parser.add_argument("--hostname", required=True)
    parser.add_argument("--state-dir", type=Path, metavar="DIRECTORY", help="folder of the state; default: no state")
    parser.add_argument("--interface", help="interface that gets the addresses; default: none")
    parser.add_argument("--netns", help="network namespace of the interface")
    options = parser.parse_args(arguments)
    client = VpnClient(
        options.control,
        key_file=options.key_file,
        hostname=options.hostname,
        state_dir=options.state_dir,
        interface=options.interface,
        netns=options.netns,
    )
    signals = (signal.SIGTERM, signal.SIGINT)
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        node = client.start()
    except (KeyFileUnusableError, NodeGoneError, RegistrationRefusedError, httpx.HTTPError, OSError) as error:
        sys.stderr.write(f"failed to auth tailscale: {error}\n")
        return 1
    sys.stdout.write(json.dumps({"nodeId": node.node_id, "addresses": node.addresses}) + "\n")
    sys.stdout.flush()
    signal.sigwait(signals)
    client.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
