"""A real Headscale server, with a database of its own that is thrown away."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import httpx
import yaml

from tests.real.machine import Machine
from tests.real.programs import PATIENCE_S, Background, Release, eventually, free_ports

_REGIONS: Final = (901, 902, 903)
"""A client asks all of them for its public address and goes on once three have answered."""

_RESTLESS: Final = frozenset({"lastSeen", "online"})
"""What changes in a node without anybody changing it."""


class HeadscaleServer:
    """One server on loopback.

    Args:
        release: which one.
        folder: for its database, keys and log; a short path, since the CLI's socket stands in it.
    """

    def __init__(self, release: Release, folder: Path) -> None:
        self.release = release
        self.folder = folder
        self.config = folder / "config.yaml"
        self._port, self._metrics_port, self._grpc_port, self._stun_port = free_ports(4)
        self._process: Background | None = None
        self._write_config()

    def __enter__(self) -> Self:
        """Start it."""
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop it."""
        self.stop()

    @cached_property
    def api_key(self) -> str:
        """An API key, made when it is first asked for."""
        key: str = self.cli("apikeys", "create", "--expiration", "90d")
        return key

    @property
    def takes_api_key(self) -> bool:
        """Whether the API key is good for this release: 0.28 and newer refuse those of 0.24 and older."""
        return self.ask("GET", "/api/v1/user").is_success

    def renew_api_key(self) -> str:
        """Make another API key, to be used from now on."""
        del self.api_key
        return self.api_key

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self._port}"

    def _write_config(self) -> None:
        regions = {
            region: {
                "regionid": region,
                "regioncode": f"r{region}",
                "regionname": f"Region {region}",
                "nodes": [
                    {
                        "name": f"{region}a",
                        "regionid": region,
                        "hostname": "127.0.0.1",
                        "ipv4": "127.0.0.1",
                        "stunport": self._stun_port,
                        "derpport": self._port,
                    }
                ],
            }
            for region in _REGIONS
        }
        relays = self.folder / "derp.yaml"
        relays.write_text(yaml.safe_dump({"regions": regions}))
        config = {
            "server_url": self.url,
            "listen_addr": f"127.0.0.1:{self._port}",
            "metrics_listen_addr": f"127.0.0.1:{self._metrics_port}",
            "grpc_listen_addr": f"127.0.0.1:{self._grpc_port}",
            "noise": {"private_key_path": str(self.folder / "noise.key")},
            "prefixes": {"v4": "100.64.0.0/10", "v6": "fd7a:115c:a1e0::/48", "allocation": "sequential"},
            "derp": {
                "server": {
                    "enabled": True,
                    "region_id": 999,
                    "region_code": "own",
                    "region_name": "Its own",
                    "stun_listen_addr": f"127.0.0.1:{self._stun_port}",
                    "private_key_path": str(self.folder / "derp.key"),
                    "automatically_add_embedded_derp_region": True,
                    "verify_clients": False,
                    "ipv4": "127.0.0.1",
                },
                "urls": [],
                "paths": [str(relays)],
                "auto_update_enabled": False,
            },
            "disable_check_updates": True,
            "database": {"type": "sqlite", "sqlite": {"path": str(self.folder / "db.sqlite")}},
            "dns": {
                "magic_dns": False,
                "override_local_dns": False,
                "base_domain": "tailnet.example",
                "nameservers": {"global": []},
            },
            "log": {"level": "info"},
            # Most of the time a login takes from 0.27 on is a wait for others, to be told together.
            "tuning": {"batch_change_delay": "10ms", "node_store_batch_timeout": "10ms"},
            "unix_socket": str(self.folder / "headscale.sock"),
            "unix_socket_permission": "0700",
        }
        self.config.write_text(yaml.safe_dump(config))

    # --- The process --------------------------------------------------------------------------------

    def start(self) -> None:
        """Start it and wait until it answers."""
        process = self._process = Background(
            [self.release.headscale, "--config", self.config, "serve"],
            log=self.folder / "headscale.log",
            environment=self._environment(),
            folder=self.folder,
        )
        eventually(lambda: process.exit_status is not None or self._answers(), "Headscale to answer")
        if process.exit_status is not None:
            raise AssertionError(f"headscale {self.release.name} did not start:\n{process.words()}")

    def stop(self) -> None:
        """End it; its clients and its database stay."""
        if self._process is not None:
            # SIGTERM waits for open polls, up to half a minute; what is written is on disk.
            self._process.stop(signal.SIGKILL)

    def restart(self, release: Release | None = None) -> None:
        """Stop it and start it again with the same database, as another release if one is given."""
        self.stop()
        self.release = release or self.release
        self.start()

    def _answers(self) -> bool:
        try:
            return httpx.get(f"{self.url}/health", timeout=PATIENCE_S).status_code == httpx.codes.OK
        except httpx.TransportError:
            return False

    def _environment(self) -> dict[str, str]:
        return {"PATH": os.environ["PATH"], "HOME": str(self.folder)}

    # --- What a person does with its CLI ------------------------------------------------------------

    def argv(self, *arguments: str) -> list[str]:
        """A command line of its CLI, as it would be run beside it."""
        return [str(self.release.headscale), "--config", str(self.config), *arguments]

    def cli(self, *arguments: str) -> Any:
        """What its CLI answers in JSON."""
        done = subprocess.run(
            self.argv(*arguments, "-o", "json"),
            env=self._environment(),
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert done.returncode == 0, f"headscale {' '.join(arguments)}: {done.stdout}{done.stderr}"
        return json.loads(done.stdout)

    def create_user(self, name: str) -> str:
        """Make a user and give its id."""
        return str(self.cli("users", "create", name)["id"])

    def create_key(self, user: str | None, *options: str) -> str:
        """Make a pre-auth key and give its secret.

        Args:
            user: the user's name; None = nobody's, from 0.28 on, with tags.
            options: such as `--reusable` or `--tags=tag:web`.
        """
        if user is not None and self.release.user_by_id:
            user = next(str(known["id"]) for known in self.cli("users", "list") if known["name"] == user)
        owner = [] if user is None else ["--user", user]
        key: str = self.cli("preauthkeys", "create", *owner, "--expiration", "1h", *options)["key"]
        return key

    # --- What its API says --------------------------------------------------------------------------

    def ask(
        self, method: str, path: str, *, body: Any = None, headers: Mapping[str, str] | None = None, **options: Any
    ) -> httpx.Response:
        """Send one request with the API key, and give whatever comes back."""
        authorization = {"Authorization": f"Bearer {self.api_key}"}
        return httpx.request(
            method,
            self.url + path,
            json=body,
            headers=authorization | dict(headers or {}),
            timeout=PATIENCE_S,
            **options,
        )

    def nodes(self, hostname: str | None = None) -> list[dict[str, Any]]:
        """Every node in its own JSON, or those of one hostname; by id."""
        nodes: list[dict[str, Any]] = self.ask("GET", "/api/v1/node").raise_for_status().json()["nodes"]
        wanted = [node for node in nodes if hostname is None or node["name"].lower() == hostname.lower()]
        return sorted(wanted, key=lambda node: int(node["id"]))

    def ids(self, hostname: str) -> list[str]:
        """The ids of the nodes of one hostname."""
        return [node["id"] for node in self.nodes(hostname)]

    def key_id(self, secret: str) -> str:
        """The id of a pre-auth key; from 0.28 on lists show only how it begins."""
        (found,) = (key["id"] for key in self.keys() if secret.startswith(key["key"].removesuffix("***")))
        return str(found)

    def expire_key(self, secret: str) -> None:
        """Expire a pre-auth key, as an administrator does."""
        if self.release.keys_by_id:
            body = {"id": self.key_id(secret)}
        else:
            (user,) = (key["user"] for key in self.keys() if key["key"] == secret)
            body = {"user": user["id"] if self.release.user_by_id else user, "key": secret}
        answer = self.ask("POST", "/api/v1/preauthkey/expire", body=body)
        # Up to 0.24 a used key cannot be expired: that it is of no use is told as a failure.
        assert answer.is_success or "already been used" in answer.text, answer.text

    def delete_key(self, secret: str) -> None:
        """Delete a pre-auth key, as an administrator can from 0.28 on."""
        self.ask("DELETE", "/api/v1/preauthkey", params={"id": self.key_id(secret)}).raise_for_status()

    def delete_node(self, node_id: str) -> None:
        """Delete a node, as an administrator does."""
        self.ask("DELETE", f"/api/v1/node/{node_id}").raise_for_status()

    def let_in(self, machine: Machine, user: str) -> None:
        """Let a machine in that shows no key, as an administrator does who was sent its link.

        Args:
            machine: started, not logged in.
            user: the name of who owns it from now on.
        """
        with machine.asking_to_be_let_in() as link:
            self.cli("nodes", "register", "--user", user, "--key", link.rpartition("/")[2])

    def snapshot(self) -> Any:
        """All that it holds, without what changes by itself."""
        users = self.ask("GET", "/api/v1/user").raise_for_status().json()
        nodes = [{name: value for name, value in node.items() if name not in _RESTLESS} for node in self.nodes()]
        return users, nodes, self.keys()

    def keys(self) -> list[dict[str, Any]]:
        """Every pre-auth key in its own JSON."""
        users = self.ask("GET", "/api/v1/user").raise_for_status().json()["users"]
        whose = [{"user": user["id"] if self.release.user_by_id else user["name"]} for user in users]
        answers = [self.ask("GET", "/api/v1/preauthkey", params=params) for params in whose]
        everybodys = [answer.raise_for_status().json()["preAuthKeys"] for answer in answers]
        # From 0.28 on each of these lists is everybody's.
        return list({key["id"]: key for keys in everybodys for key in keys}.values())
