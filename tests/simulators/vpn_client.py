"""A simulated tailscale container, which registers with the key file and sets the addresses of an interface."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import httpx

from tests.simulators.headscale import HeadscaleSimulator, Node, NodeGoneError, RegistrationRefusedError

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

    id: int
    addresses: Sequence[str]


class _RemoteServer:
    """A simulated Headscale that is served on loopback. Its methods are those of `HeadscaleSimulator`."""

    def __init__(self, url: str) -> None:
        self._url = url

    def _call(self, action: str, **arguments: Any) -> Any:
        response = httpx.post(f"{self._url}/sim/{action}", json=arguments, timeout=TIMEOUT_S)
        if response.status_code == httpx.codes.NOT_FOUND:
            raise NodeGoneError(response.text)
        if response.status_code == httpx.codes.UNAUTHORIZED:
            raise RegistrationRefusedError(response.text)
        return response.raise_for_status().json()

    def register(self, **arguments: str | None) -> RegisteredNode:
        return RegisteredNode(**self._call("register", **arguments))

    def connect(self, node_id: int) -> None:
        self._call("connect", node_id=node_id)

    def disconnect(self, node_id: int) -> None:
        # A test can have stopped the server.
        with suppress(httpx.TransportError):
            self._call("disconnect", node_id=node_id)

    def readdress(self, node_id: int) -> RegisteredNode:
        return RegisteredNode(**self._call("readdress", node_id=node_id))


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
    ) -> None:
        """Configure the container. `start` starts it.

        Args:
            control: a simulated Headscale in this process, or the URL of one.
            key_file: the path in `TS_AUTHKEY=file:`.
            hostname: `TS_HOSTNAME`.
            state_dir: the folder of the state; None = the client registers as a new machine at each start.
            auth_once: `TS_AUTH_ONCE`. If True, a client that has a node first registers without the key.
            interface: the interface that gets the node's addresses, such as `tailscale0`; None = no interface.
        """
        self._server = _RemoteServer(control) if isinstance(control, str) else control
        self._key_file = key_file
        self._hostname = hostname
        self._state_dir = state_dir
        self._auth_once = auth_once
        self._interface = interface
        self._identity = Identity.new()
        self.addresses: Sequence[str] = ()

    @property
    def node_id(self) -> int | None:
        """The id of the client's node; None if it has never registered."""
        return self._identity.node_id

    @property
    def machine_key(self) -> str:
        """The client's machine key, including the prefix `mkey:`."""
        return self._identity.machine_key

    def start(self) -> Node | RegisteredNode:
        """Start the container: register, connect, and add the addresses to the interface.

        Raises:
            KeyFileUnusableError: a key is needed, and the file does not contain one.
            RegistrationRefusedError: the server refused the registration.
        """
        self._identity = self._load()
        node = self._register()
        self._identity = replace(self._identity, node_id=node.id)
        if self._state_dir is not None:
            (self._state_dir / STATE_FILE).write_text(json.dumps(asdict(self._identity)), encoding="utf-8")
        self._server.connect(node.id)
        self._set_addresses(node)
        return node

    def change_address(self) -> Node | RegisteredNode:
        """Let the server assign new addresses, and replace the addresses of the interface.

        Raises:
            NodeGoneError: the node was deleted.
        """
        if self.node_id is None:
            raise NodeGoneError("not registered")
        node = self._server.readdress(self.node_id)
        self._set_addresses(node)
        return node

    def stop(self) -> None:
        """Stop the container."""
        if self.node_id is not None:
            self._server.disconnect(self.node_id)
        if self._interface is not None:
            _ip("link", "delete", self._interface)
        self.addresses = ()

    def _register(self) -> Node | RegisteredNode:
        """Register. With TS_AUTH_ONCE, a client that has a node first tries to register without the key."""
        if self._auth_once and self._identity.node_id is not None:
            try:
                return self._register_with(None)
            except RegistrationRefusedError:
                pass  # Tailscale's state is NeedsLogin, so the container sends the key.
        return self._register_with(self._key())

    def _register_with(self, key: str | None) -> Node | RegisteredNode:
        identity = self._identity
        return self._server.register(
            key=key, hostname=self._hostname, machine_key=identity.machine_key, node_key=identity.node_key
        )

    def _key(self) -> str:
        try:
            key = self._key_file.read_text(encoding="utf-8").strip()
        except OSError as error:
            raise KeyFileUnusableError(f"cannot read the key file: {error.strerror}") from error
        if not key:
            raise KeyFileUnusableError("the key file is empty: the container would wait forever")
        return key

    def _set_addresses(self, node: Node | RegisteredNode) -> None:
        self.addresses = node.addresses
        if self._interface is not None:
            for address in node.addresses:
                set_address(self._interface, address)

    def _load(self) -> Identity:
        if self._state_dir is None:
            return Identity.new()
        path = self._state_dir / STATE_FILE
        return Identity(**json.loads(path.read_text(encoding="utf-8"))) if path.exists() else Identity.new()


CREATE_COMMANDS = ("tuntap add mode tun dev {}", "link add name {} type dummy", "link add name {} type bridge")
"""Commands that create an interface, the most realistic first. Not every kernel supports every type of interface."""


def set_address(interface: str, address: str) -> None:
    """Replace an interface's addresses of one family (IPv4 or IPv6). Create the interface if it does not exist.

    This requires CAP_NET_ADMIN and the program `ip`.

    Raises:
        OSError: `ip` failed.
    """
    if _ip("link", "show", "dev", interface):
        _create(interface)
    is_ipv6 = ":" in address
    for command in (
        ("-6" if is_ipv6 else "-4", "address", "flush", "dev", interface, *(("scope", "global") if is_ipv6 else ())),
        ("address", "add", address, "dev", interface, *(("nodad",) if is_ipv6 else ())),
        ("link", "set", interface, "up"),
    ):
        if error := _ip(*command):
            raise OSError(error)


def _create(interface: str) -> None:
    errors = []
    for command in CREATE_COMMANDS:
        error = _ip(*command.format(interface).split())
        if not error:
            return
        errors.append(error)
    raise OSError("; ".join(errors))


def _ip(*arguments: str) -> str:
    """Run `ip`, and return its error message; "" if it has succeeded."""
    command = [shutil.which("ip") or "/sbin/ip", *arguments]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=TIMEOUT_S)
    return (done.stderr.strip() or "failed") if done.returncode else ""
