"""The pods of one workload, their simulated upstreams, and what has happened to them so far."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from pathlib import Path
from threading import Event
from typing import Any, Final

import pytest

from lifecycle.dns_watch.loop import DnsWatch
from lifecycle.settings.models import Command
from tests.builders import COMMENT_AT_FURTHER_NAMES, NAME, OUR_COMMENT
from tests.faults.schedule import Schedule, UpstreamName
from tests.faults.tap import NamedFaults, Request
from tests.simulators.cloudflare import Record
from tests.simulators.headscale import Node, NodeGoneError
from tests.simulators.upstream import Upstream
from tests.world import USER, ZONE, Clock, Interface, World

VPN: Final = tuple(map(ip_network, ("100.64.0.0/10", "fd7a:115c:a1e0::/48")))

# The further names that a workload has if `FaultWorld.has_further_names` is true.
ALIAS: Final = f"docs.{ZONE}"
APEX: Final = ZONE
SHARED: Final = f"ingress.{ZONE}"
SIBLING_MARK: Final = f"{OUR_COMMENT} wiki.{ZONE}"
"""The comment of another workload's records under SHARED."""

MISLED_S: Final = 600.0
"""For this long after a wrong response that no client can detect, the program may act on it."""


@dataclass(slots=True)
class Pod:
    """One pod of the workload: a key volume, a tailscale container, and either `cleanup` or `dns-watch`.

    Attributes:
        number: counts the pods of the workload, from 0.
        folder: the volume with the key file.
        interface: the VPN interface.
        has_interface: tailscale creates the VPN interface.
        due_s: when one of its containers runs next, on the simulated clock.
        initialized: the init container has succeeded.
        watch: the sidecar; None while the init container runs, or before its next start.
        stop: the stop signal of the running command, if it has one.
        restarts: how often one of its containers has ended.
        node_id: the node that tailscale registered; None until then.
        machine_key: tailscale's; None until it has registered once.
        cut_off: it has no network.
        misled_at_s: when it last received a wrong response that it cannot distinguish from a correct one.
        is_running: False after the kubelet has stopped it.
    """

    number: int
    folder: Path
    interface: Interface
    has_interface: bool
    due_s: float
    initialized: bool = False
    watch: DnsWatch | None = None
    stop: Event | None = None
    restarts: int = 0
    node_id: int | None = None
    machine_key: str | None = None
    cut_off: bool = False
    misled_at_s: float = -MISLED_S
    is_running: bool = True

    @property
    def key_file(self) -> Path:
        return self.folder / "authkey"

    @property
    def kept_node_id(self) -> str | None:
        """The `kept_node_id` in the key metadata; None if the metadata has none or is missing."""
        metadata = self.key_file.with_suffix(".id")
        return json.loads(metadata.read_text())["kept_node_id"] if metadata.exists() else None

    def set_addresses(self, *addresses: str | None) -> None:
        """Set the addresses of the VPN interface."""
        if self.has_interface:
            self.interface.set_addresses(*addresses)


@dataclass(slots=True)
class Pass:
    """What happened during one run of a command, or one pass of `dns-watch`.

    Attributes:
        disturbed: an upstream changed during the pass, or a response was wrong without a sign of it.
        unread_changes: ids of records that another owner has changed since this pass last read them.
        superseded_at_start: nodes of later pods that had published their address when the pass started.
    """

    pod: Pod
    requests: list[Request] = field(default_factory=list)
    disturbed: bool = False
    unread_changes: set[str] = field(default_factory=set)
    superseded_at_start: frozenset[int] = frozenset()


class FaultWorld(World):
    """The upstreams and the clock. Ownership is evaluated here, independently of the program's rules."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path, schedule: Schedule) -> None:
        super().__init__(monkeypatch, folder, schedule.version)
        self._loaded: dict[type[Any], Any] = {}
        self.queues: dict[UpstreamName, NamedFaults] = {"headscale": NamedFaults(), "cloudflare": NamedFaults()}
        self.headscale.faults = self.queues["headscale"]
        self.cloudflare.faults = self.queues["cloudflare"]
        self._secret_files: dict[str, Path] = {}
        for name, token in (
            ("HEADSCALE_API_KEY", self.headscale.api_key),
            ("CLOUDFLARE_API_TOKEN", self.cloudflare.token),
        ):
            file = folder / name
            file.write_text(token)
            self._secret_files[name] = file
            del self.environment[name]
            self.environment[f"{name}_FILE"] = str(file)
        variables = dict(schedule.variables)
        if variables.pop("CLOUDFLARE_ZONE_ID") != "given":
            self.environment["CLOUDFLARE_ZONE_ID"] = ""
        self.environment.update(variables)

    def upstream(self, name: UpstreamName) -> Upstream:
        """Return a simulator by its name."""
        return self.headscale if name == "headscale" else self.cloudflare

    def settings(self, command: type[Command], **variables: str) -> Command:
        """Return the settings of a command. All pods have the same, except for the path of the key file."""
        path = Path(variables.pop("AUTHKEY_OUTPUT_PATH"))
        if command not in self._loaded:
            self._loaded[command] = super().settings(command, **variables)
        loaded: Command = self._loaded[command].model_copy(update={"authkey_output_path": path})
        return loaded

    def write_secret(self, name: str, value: str) -> None:
        """Replace the secret in the file that a setting names."""
        self._secret_files[name].write_text(value)

    def is_our_record(self, record: Record) -> bool:
        """Return True if the program may change a record."""
        if record.comment == COMMENT_AT_FURTHER_NAMES:
            return record.name != NAME and record.type in {"A", "AAAA", "CNAME"}
        if record.name != NAME or record.type not in {"A", "AAAA"}:
            return False
        if record.comment:
            return record.comment == OUR_COMMENT
        return any(ip_address(record.content) in prefix for prefix in VPN)

    def is_our_node(self, node: Node) -> bool:
        """Return True if the program may change a node."""
        if node.name.casefold() != NAME or node.registered_by != "auth_key":
            return False
        key_user = node.pre_auth_key.user_id if node.pre_auth_key else None
        owner = node.user_id if node.user_id is not None else key_user
        return owner == next(user.id for user in self.headscale.users if user.name == USER)

    @property
    def all_records(self) -> dict[str, Record]:
        """Return every record of the zone, by id."""
        return {record.id: record for record in self.cloudflare.records(self.zone_id)}

    @property
    def our_records(self) -> list[Record]:
        """Return our records under all names."""
        return [record for record in self.cloudflare.records(self.zone_id) if self.is_our_record(record)]

    @property
    def has_further_names(self) -> bool:
        """True if the workload has the names ALIAS, APEX and SHARED."""
        return "DNS_ALIASES" in self.environment

    def desired_records(self, node: Node) -> list[tuple[str, str, str]]:
        """Return name, content and comment of each record that a node should have."""
        addresses = node.addresses if self.environment["DNS_IPV6"] == "true" else node.addresses[:1]
        desired = [(NAME, address, OUR_COMMENT) for address in addresses]
        if self.has_further_names:
            desired.append((ALIAS, NAME, COMMENT_AT_FURTHER_NAMES))
            desired += [(name, address, COMMENT_AT_FURTHER_NAMES) for name in (APEX, SHARED) for address in addresses]
        return desired

    @property
    def our_nodes(self) -> list[Node]:
        """Return our nodes that have not expired."""
        return [node for node in self.headscale.nodes if self.is_our_node(node) and not self.is_expired(node)]

    def is_expired(self, node: Node) -> bool:
        """Return True if a node has to log in again."""
        return node.expires_at is not None and node.expires_at <= self.clock.true_now()

    @property
    def blocking(self) -> list[Record]:
        """Return the foreign records of our names because of which the program does not write ours."""
        ipv6 = self.environment["DNS_IPV6"] == "true"
        kinds = {"A", "CNAME", "NS"} | ({"AAAA"} if ipv6 else set())
        names = {ALIAS, APEX, SHARED} if self.has_further_names else set()
        # At a further name, the program does not detect a foreign record if ours exists too.
        existing = {(record.name, record.type) for record in self.our_records}
        return [
            record
            for record in self.cloudflare.records(self.zone_id)
            if (record.name == NAME or (record.name in names and (record.name, record.type) not in existing))
            and record.type in kinds
            and not self.is_our_record(record)
            and record.comment != SIBLING_MARK
        ]


class Workload:
    """All pods of one workload, and the passes that are running now.

    Attributes:
        passes: the outermost first. During a request of one pod's pass, another pod can run a pass.
        credentials_are_valid: the upstreams accept the secrets in the pods' files.
    """

    def __init__(self, schedule: Schedule, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.schedule = schedule
        self.world = FaultWorld(monkeypatch, folder, schedule)
        self.clock: Clock = self.world.clock
        self.pods: list[Pod] = []
        self.passes: list[Pass] = []
        self.credentials_are_valid = True
        self._folder = folder

    @property
    def running(self) -> list[Pod]:
        """Return the running pods, oldest first."""
        return [pod for pod in self.pods if pod.is_running]

    @property
    def between_passes(self) -> list[Pod]:
        """Return the running pods that are not in the middle of a pass."""
        busy = [current.pod for current in self.passes]
        return [pod for pod in self.running if pod not in busy]

    @property
    def record_owner(self) -> Pod | None:
        """Return the pod that must own the record, which is the one with the newest node."""
        node_ids = {node.id for node in self.world.our_nodes}
        registered = [pod for pod in self.running if pod.node_id in node_ids and pod.initialized]
        return max(registered, key=lambda pod: pod.node_id or 0, default=None)

    def published_successors(self, pod: Pod, records: dict[str, Record] | None = None) -> frozenset[int]:
        """Return the online nodes of later pods whose address is in a marked record."""
        world = self.world
        contents = {
            record.content
            for record in (world.all_records if records is None else records).values()
            if world.is_our_record(record) and record.comment
        }
        return frozenset(
            node.id
            for node in world.our_nodes
            if pod.node_id is not None
            and node.id > pod.node_id
            and world.headscale.online(node.id)
            and contents & set(node.addresses)
        )

    def start_pod(self) -> Pod:
        """Start another pod."""
        number = len(self.pods)
        folder = self._folder / f"pod-{number}"
        folder.mkdir()
        has_interface = bool(self.world.environment["TAILSCALE_INTERFACE"])
        pod = Pod(number, folder, Interface(None), has_interface, self.clock.elapsed_s)
        self.pods.append(pod)
        return pod

    def end_pod(self, pod: Pod, *, silently: bool = False) -> None:
        """Stop a pod.

        Args:
            silently: Headscale still reports the node as online, as after a failure of the cluster node.
        """
        pod.is_running = False
        if pod.node_id is not None:
            self.world.headscale.disconnect(pod.node_id, silently=silently)

    def reconnect(self) -> None:
        """Connect the tailscale clients that can reach Headscale."""
        for pod in self.running:
            if pod.node_id is not None and not pod.cut_off:
                with suppress(NodeGoneError):
                    self.world.headscale.connect(pod.node_id)
