"""The pods of one workload and their simulated upstreams (Headscale and Cloudflare), during one schedule of faults.

A pass is one run of `cleanup`, or one iteration of the loop of `dns-watch`.
"""

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
from tests.faults.tap import CountedFaults
from tests.simulators.cloudflare import Record
from tests.simulators.headscale import Node, NodeGoneError
from tests.simulators.upstream import Exchange, Upstream
from tests.world import USER, ZONE, Clock, Interface, World

VPN: Final = tuple(map(ip_network, ("100.64.0.0/10", "fd7a:115c:a1e0::/48")))

# The names that a workload has in addition to its hostname if `FaultWorld.has_further_names` is true: two aliases, one
# of which is the domain itself (APEX), and a name that several workloads share.
ALIAS: Final = f"docs.{ZONE}"
APEX: Final = ZONE
SHARED: Final = f"ingress.{ZONE}"
SIBLING_COMMENT: Final = f"{OUR_COMMENT} wiki.{ZONE}"
"""The comment of the records that another workload has with the name SHARED."""

MISLED_S: Final = 600.0
"""How long a response that misled a pod (`Pod.misled_at_s`) excuses wrong behavior."""


@dataclass(slots=True)
class Pod:
    """One pod of the workload: a key volume, a tailscale container, and either `cleanup` or `dns-watch`.

    Attributes:
        number: the number of the pod in its workload, from 0.
        folder: the volume with the key file.
        interface: the VPN interface.
        has_interface: True if `dns-watch` can read the VPN interface.
        due_s: when one of its containers runs next, on the simulated clock.
        initialized: True if the init container has succeeded.
        watch: the sidecar; None before its first start, and after it has ended until it starts again.
        stop: the stop event of `cleanup`, or of a `dns-watch` that got SIGTERM; otherwise None.
        exits: how often a container has ended since `cleanup` last succeeded, for the kubelet's backoff.
        node_id: the id of the tailscale container's node; None if the container has to register one.
        machine_key: the machine key of the tailscale container; None before its first registration.
        cut_off: True if the pod has no network.
        misled_at_s: when the pod last received a stale response, or a list without its node while it could not read the
            node by its id.
        is_running: False after the kubelet has stopped the pod.
    """

    number: int
    folder: Path
    interface: Interface
    has_interface: bool
    due_s: float
    initialized: bool = False
    watch: DnsWatch | None = None
    stop: Event | None = None
    exits: int = 0
    node_id: int | None = None
    machine_key: str | None = None
    cut_off: bool = False
    misled_at_s: float = -MISLED_S
    is_running: bool = True

    @property
    def key_file(self) -> Path:
        return self.folder / "authkey"

    @property
    def metadata_node_id(self) -> str | None:
        """The id of the pod's last known node, from the metadata file beside the key file; None if there is none."""
        metadata = self.key_file.with_suffix(".id")
        return json.loads(metadata.read_text())["node_id"] if metadata.exists() else None

    def set_addresses(self, *addresses: str | None) -> None:
        """Set the addresses of the VPN interface."""
        if self.has_interface:
            self.interface.set_addresses(*addresses)


@dataclass(slots=True)
class Pass:
    """What happened during one run of `cleanup`, or one iteration of the loop of `dns-watch`.

    Attributes:
        pod: the pod of the command.
        requests: the requests of the command, oldest first.
        disturbed: True if the pass was interrupted, or if a response was wrong without a detectable sign.
        changed_after_read: the ids of records that were changed by someone else after this pass last read them.
        successors_at_start: the ids of nodes of later pods that had a record already when the pass started.
    """

    pod: Pod
    requests: list[Exchange] = field(default_factory=list)
    disturbed: bool = False
    changed_after_read: set[str] = field(default_factory=set)
    successors_at_start: frozenset[int] = frozenset()


class FaultWorld(World):
    """The simulated upstreams with their faults, and the clock.

    A record or node is ours if the program may change it. This class decides what is ours without code of the program.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path, schedule: Schedule) -> None:
        super().__init__(monkeypatch, folder, schedule.version)
        self._loaded: dict[type[Any], Any] = {}
        self.fault_queues: dict[UpstreamName, CountedFaults] = {
            "headscale": CountedFaults(),
            "cloudflare": CountedFaults(),
        }
        self.headscale.faults = self.fault_queues["headscale"]
        self.cloudflare.faults = self.fault_queues["cloudflare"]
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
        """Return the settings of a command. In all pods they are the same, except for the path of the key file."""
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
        """Return our records with all names of the workload."""
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
        """Return our nodes, without those that have expired."""
        return [node for node in self.headscale.nodes if self.is_our_node(node) and not self.is_expired(node)]

    def is_expired(self, node: Node) -> bool:
        """Return True if a node has expired, so that its client must log in again."""
        return node.expires_at is not None and node.expires_at <= self.clock.true_now()

    @property
    def blocking_records(self) -> list[Record]:
        """Return the foreign records because of which the program does not write our record with the same name."""
        ipv6 = self.environment["DNS_IPV6"] == "true"
        kinds = {"A", "CNAME", "NS"} | ({"AAAA"} if ipv6 else set())
        names = {ALIAS, APEX, SHARED} if self.has_further_names else set()
        # At an alias or a shared name, a foreign record blocks nothing if our record of this type exists already.
        existing = {(record.name, record.type) for record in self.our_records}
        return [
            record
            for record in self.cloudflare.records(self.zone_id)
            if (record.name == NAME or (record.name in names and (record.name, record.type) not in existing))
            and record.type in kinds
            and not self.is_our_record(record)
            and record.comment != SIBLING_COMMENT
        ]


class Workload:
    """All pods of one workload, and the passes that are running now.

    Attributes:
        running_passes: grows during a request of one pod's pass, if another pod then runs a pass.
        credentials_are_valid: True if the upstreams accept the secrets in the pods' files.
    """

    def __init__(self, schedule: Schedule, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.schedule = schedule
        self.world = FaultWorld(monkeypatch, folder, schedule)
        self.clock: Clock = self.world.clock
        self.pods: list[Pod] = []
        self.running_passes: list[Pass] = []
        self.credentials_are_valid = True
        self._folder = folder

    @property
    def running_pods(self) -> list[Pod]:
        """Return the running pods, oldest first."""
        return [pod for pod in self.pods if pod.is_running]

    @property
    def pods_between_passes(self) -> list[Pod]:
        """Return the running pods that are not in the middle of a pass."""
        busy = [current.pod for current in self.running_passes]
        return [pod for pod in self.running_pods if pod not in busy]

    @property
    def pod_with_newest_node(self) -> Pod | None:
        """Return the pod with the newest node. If all clients are connected, the record must have its address."""
        node_ids = {node.id for node in self.world.our_nodes}
        registered = [pod for pod in self.running_pods if pod.node_id in node_ids and pod.initialized]
        return max(registered, key=lambda pod: pod.node_id or 0, default=None)

    def published_successors(self, pod: Pod, records: dict[str, Record] | None = None) -> frozenset[int]:
        """Return the ids of online nodes of later pods whose address is in a record with our comment.

        Args:
            pod: the pod with which the nodes are compared.
            records: all records of the zone by id; the current ones if omitted.
        """
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
            pod: the pod to stop.
            silently: True if Headscale still reports the node as online, as after a failure of the cluster node.
        """
        pod.is_running = False
        if pod.node_id is not None:
            self.world.headscale.disconnect(pod.node_id, silently=silently)

    def reconnect(self) -> None:
        """Connect all tailscale clients to Headscale, except those without a network."""
        for pod in self.running_pods:
            if pod.node_id is not None and not pod.cut_off:
                with suppress(NodeGoneError):
                    self.world.headscale.connect(pod.node_id)
