"""Run a real Headscale server with a temporary database."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import urlsplit

import httpx
import yaml

from tests.real.programs import TIMEOUT_S, BackgroundProcess, Release, eventually, free_ports, run_program
from tests.real.tailscale_client import TailscaleClient

_REGIONS: Final = (901, 902, 903)
"""The ids of three relay regions, all of which contain the same relay.

To learn its public address, a Tailscale client waits until three regions have responded, or until a timeout.
"""


def configuration(
    url: str, folder: str, *, ports: Sequence[int], relay: str, listen: str = "127.0.0.1", address: str = "127.0.0.1"
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the configuration of a server, and the content of its file `derp.yaml`, which defines the relay regions.

    Args:
        url: the URL for clients.
        folder: the folder of the server, for its database and keys.
        ports: the ports for the API, the metrics, gRPC and STUN.
        relay: the URL of the relay (DERP server) that is part of Headscale.
        listen: the address to listen on.
        address: the IP address of the relay.
    """
    api, metrics, grpc, stun = ports
    parts = urlsplit(relay)
    node = {
        "hostname": parts.hostname,
        "ipv4": address,
        "stunport": stun,
        "derpport": parts.port or {"http": 80, "https": 443}[parts.scheme],
    }
    regions = {
        region: {
            "regionid": region,
            "regioncode": f"r{region}",
            "regionname": f"Region {region}",
            "nodes": [{"name": f"{region}a", "regionid": region, **node}],
        }
        for region in _REGIONS
    }
    config = {
        "server_url": url,
        "listen_addr": f"{listen}:{api}",
        "metrics_listen_addr": f"127.0.0.1:{metrics}",
        "grpc_listen_addr": f"127.0.0.1:{grpc}",
        "noise": {"private_key_path": f"{folder}/noise.key"},
        "prefixes": {"v4": "100.64.0.0/10", "v6": "fd7a:115c:a1e0::/48", "allocation": "sequential"},
        "derp": {
            "server": {
                "enabled": True,
                "region_id": 999,
                "region_code": "own",
                "region_name": "Embedded",
                "stun_listen_addr": f"{listen}:{stun}",
                "private_key_path": f"{folder}/derp.key",
                "automatically_add_embedded_derp_region": True,
                "verify_clients": False,
                "ipv4": address,
            },
            "urls": [],
            "paths": [f"{folder}/derp.yaml"],
            "auto_update_enabled": False,
        },
        "disable_check_updates": True,
        "database": {"type": "sqlite", "sqlite": {"path": f"{folder}/db.sqlite"}},
        "dns": {
            "magic_dns": False,
            "override_local_dns": False,
            "base_domain": "tailnet.example",
            "nameservers": {"global": []},
        },
        "log": {"level": "info"},
        # Headscale 0.27 and newer delay changes and send them in batches. With the default delays, a login takes long.
        "tuning": {"batch_change_delay": "10ms", "node_store_batch_timeout": "10ms"},
        "unix_socket_permission": "0700",
    }
    return config, {"regions": regions}


class HeadscaleServer:
    """A server on a loopback port.

    Args:
        release: the release to run.
        folder: a folder with a short path, for the database, the keys, the log and the socket of the CLI.
        settings: sections of the configuration that replace the defaults.
        public_url: the URL of a proxy in front of the server, which clients use.
    """

    def __init__(
        self,
        release: Release,
        folder: Path,
        *,
        settings: Mapping[str, Any] | None = None,
        public_url: str | None = None,
    ) -> None:
        self.release = release
        self.folder = folder
        self.config = folder / "config.yaml"
        self._port, self._metrics_port, self._grpc_port, self._stun_port = free_ports(4)
        self.public_url = public_url or self.url
        self._settings = settings or {}
        self._process: BackgroundProcess | None = None
        self._write_config()

    def __enter__(self) -> Self:
        """Start the server."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the server."""
        self.stop()

    @cached_property
    def api_key(self) -> str:
        """An API key, created on first use."""
        key: str = self.cli("apikeys", "create", "--expiration", "90d")
        return key

    @property
    def accepts_api_key(self) -> bool:
        """True if the server accepts the API key. Headscale 0.28 and newer refuse keys that 0.24 and older created."""
        return self.request("GET", "/api/v1/user").is_success

    def renew_api_key(self) -> str:
        """Create a new API key, and return it."""
        del self.api_key
        return self.api_key

    @property
    def url(self) -> str:
        """The URL of the server itself."""
        return f"http://127.0.0.1:{self._port}"

    def _write_config(self) -> None:
        ports = (self._port, self._metrics_port, self._grpc_port, self._stun_port)
        config, relays = configuration(self.public_url, str(self.folder), ports=ports, relay=self.url)
        config["unix_socket"] = str(self.folder / "headscale.sock")
        (self.folder / "derp.yaml").write_text(yaml.safe_dump(relays))
        self.config.write_text(yaml.safe_dump(config | dict(self._settings)))

    # --- The process --------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the server and wait until it responds."""
        process = self._process = BackgroundProcess(
            [self.release.headscale, "--config", self.config, "serve"],
            log=self.folder / "headscale.log",
            environment=self._environment(),
            folder=self.folder,
        )
        eventually(lambda: process.exit_status is not None or self._responds(), "Headscale to respond")
        if process.exit_status is not None:
            raise AssertionError(f"headscale {self.release.name} did not start:\n{process.output()}")

    def stop(self) -> None:
        """Stop the server and keep its database."""
        if self._process is not None:
            # With SIGTERM, the server would wait up to 30 s for open connections. The database is already on disk.
            self._process.stop(signal.SIGKILL)

    def restart(self, release: Release | None = None) -> None:
        """Restart the server with the same database, optionally as another release."""
        self.stop()
        self.release = release or self.release
        self.start()

    def _responds(self) -> bool:
        try:
            return httpx.get(f"{self.url}/health", timeout=TIMEOUT_S).status_code == httpx.codes.OK
        except httpx.TransportError:
            return False

    def _environment(self) -> dict[str, str]:
        return {"PATH": os.environ["PATH"], "HOME": str(self.folder)}

    # --- The CLI -----------------------------------------------------------------------------------

    def run_cli(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command of the CLI, which connects to the socket of the server."""
        command = [str(self.release.headscale), "--config", str(self.config), *arguments]
        return run_program(command, environment=self._environment(), folder=self.folder)

    def cli(self, *arguments: str) -> Any:
        """Run a command of the CLI and return its JSON output."""
        done = self.run_cli(*arguments, "-o", "json")
        assert done.returncode == 0, f"headscale {' '.join(arguments)}: {done.stdout}{done.stderr}"
        return json.loads(done.stdout)

    def create_user(self, name: str) -> str:
        """Create a user and return its id."""
        return str(self.cli("users", "create", name)["id"])

    def cli_user(self, user: str) -> str:
        """Return the value of `--user`: the name, or from 0.26 on the id. `nodes register` always needs the name."""
        return self.user_id(user) if self.release.identifies_users_by_id else user

    def user_id(self, name: str) -> str:
        """Return the id of a user."""
        return next(str(user["id"]) for user in self.cli("users", "list") if user["name"] == name)

    def create_key(self, user: str | None, *options: str) -> str:
        """Create a pre-auth key and return its secret.

        Args:
            user: the user's name; None = a key with tags and without a user, which needs Headscale 0.28 or newer.
            options: options of the command, such as `--reusable` or `--tags=tag:web`.
        """
        owner = [] if user is None else ["--user", self.cli_user(user)]
        key: str = self.cli("preauthkeys", "create", *owner, "--expiration", "1h", *options)["key"]
        return key

    # --- The API ------------------------------------------------------------------------------------

    def request(
        self, method: str, path: str, *, body: Any = None, headers: Mapping[str, str] | None = None, **options: Any
    ) -> httpx.Response:
        """Send one request with the API key and return the response, even an error."""
        authorization = {"Authorization": f"Bearer {self.api_key}"}
        return httpx.request(
            method,
            self.url + path,
            json=body,
            headers=authorization | dict(headers or {}),
            timeout=TIMEOUT_S,
            **options,
        )

    def nodes(self, hostname: str | None = None) -> list[dict[str, Any]]:
        """Return the JSON of all nodes, or those with a hostname, sorted by id."""
        nodes: list[dict[str, Any]] = self.request("GET", "/api/v1/node").raise_for_status().json()["nodes"]
        selected = [node for node in nodes if hostname is None or node["name"].lower() == hostname.lower()]
        return sorted(selected, key=lambda node: int(node["id"]))

    def node_ids(self, hostname: str) -> list[str]:
        """Return the ids of the nodes with a hostname."""
        return [node["id"] for node in self.nodes(hostname)]

    def key_id(self, secret: str) -> str:
        """Return the id of a pre-auth key. From 0.28 on, lists contain only a prefix of the key."""
        (key_id,) = (key["id"] for key in self.pre_auth_keys() if secret.startswith(key["key"].removesuffix("***")))
        return str(key_id)

    def expire_key(self, secret: str) -> None:
        """Expire a pre-auth key."""
        if self.release.identifies_keys_by_id:
            body = {"id": self.key_id(secret)}
        else:
            (user,) = (key["user"] for key in self.pre_auth_keys() if key["key"] == secret)
            body = {"user": user["id"] if self.release.identifies_users_by_id else user, "key": secret}
        response = self.request("POST", "/api/v1/preauthkey/expire", body=body)
        # Headscale up to 0.24 returns an error for a used key.
        assert response.is_success or "already been used" in response.text, response.text

    def delete_key(self, secret: str) -> None:
        """Delete a pre-auth key. Requires 0.28 or newer."""
        self.request("DELETE", "/api/v1/preauthkey", params={"id": self.key_id(secret)}).raise_for_status()

    def delete_node(self, node_id: str) -> None:
        """Delete a node."""
        self.request("DELETE", f"/api/v1/node/{node_id}").raise_for_status()

    def expire_node(self, node_id: str) -> None:
        """Expire a node now."""
        self.request("POST", f"/api/v1/node/{node_id}/expire").raise_for_status()

    def approve(self, client: TailscaleClient, user: str) -> None:
        """Register a client without a key, as an administrator does with the client's login link.

        Args:
            client: a running client that is not logged in.
            user: the name of the user that will own the node.
        """
        with client.login_link() as link:
            self.cli("nodes", "register", "--user", user, "--key", link.rpartition("/")[2])

    def pre_auth_keys(self) -> list[dict[str, Any]]:
        """Return the JSON of all pre-auth keys."""
        users = self.request("GET", "/api/v1/user").raise_for_status().json()["users"]
        owners = [{"user": user["id"] if self.release.identifies_users_by_id else user["name"]} for user in users]
        responses = [self.request("GET", "/api/v1/preauthkey", params=params) for params in owners]
        lists = [response.raise_for_status().json()["preAuthKeys"] for response in responses]
        # Headscale 0.28 and newer return the keys of all users in each list.
        return list({key["id"]: key for keys in lists for key in keys}.values())
