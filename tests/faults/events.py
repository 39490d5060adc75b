"""The events of a schedule: actions of other owners, operators, Headscale, the kubelet and the network."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Final, TypeVar

from tests.builders import COMMENT_OF_OTHER_OWNER, NAME, OUR_COMMENT
from tests.faults.schedule import Step
from tests.faults.workload import Workload
from tests.simulators.cloudflare import ApiError, Record
from tests.simulators.dialects import VERSIONS
from tests.simulators.headscale import NodeGoneError
from tests.world import USER

Item = TypeVar("Item")

UNUSED_NODE_ID: Final = 0
"""An id that no node has, for pods whose node is not in the restored database."""

RECONNECT_S: Final = 5.0
"""The time after which a tailscale client reconnects if Headscale has restarted."""


class _ImpossibleError(Exception):
    """There is no record or node that the event can change."""


class Events:
    """Executes the events of schedules. Each event is a method: the event "node deleted" is `node_deleted`.

    The constructor makes the backup of Headscale's database that the event "database restored" restores.

    Args:
        workload: the pods and upstreams that the events affect.
    """

    def __init__(self, workload: Workload) -> None:
        self._workload = workload
        self._world = workload.world
        self._clock = workload.clock
        self._backup = workload.world.headscale.backup()

    def execute(self, step: Step) -> None:
        """Execute the event of a step. If the event is impossible now, do nothing."""
        event: Callable[[Step], None] = getattr(self, step.kind.lower().replace(" ", "_"))
        with suppress(ApiError, NodeGoneError, _ImpossibleError):
            event(step)

    # --- Records -----------------------------------------------------------------------------------------

    def record_edited(self, step: Step) -> None:
        change = step.random.choice(({"content": "100.64.77.7"}, {"ttl": 600}, {"ttl": 1}))
        self._world.cloudflare.change_record(self._choose_record(step).id, **change)

    def record_comment_removed(self, step: Step) -> None:
        record = self._choose_record(step)
        self._world.cloudflare.change_record(record.id, comment="")
        if record.name != NAME:
            # The name is in DNS_ALIASES or DNS_SHARED_NAMES. At such a name, a record without a comment is foreign.
            self._add_change_for_stale_reads()

    def record_deleted(self, step: Step) -> None:
        self._world.cloudflare.remove_record(self._choose_record(step).id)

    def second_record_added(self, step: Step) -> None:
        self._world.add_record("100.64.88.8", comment=step.random.choice((None, OUR_COMMENT)))

    def record_comment_changed(self, step: Step) -> None:
        self._world.cloudflare.change_record(self._choose_record(step).id, comment="mine now")
        self._add_change_for_stale_reads()

    def foreign_record_added(self, _step: Step) -> None:
        self._world.add_record("100.64.99.9", comment=COMMENT_OF_OTHER_OWNER)
        self._add_change_for_stale_reads()

    def foreign_cname_created(self, _step: Step) -> None:
        for record in self._world.our_records:
            self._world.cloudflare.remove_record(record.id)
        self._world.add_record("elsewhere.example.org", type_="CNAME")
        self._add_change_for_stale_reads()

    def record_changed_during_a_pass(self, step: Step) -> None:
        """While passes run, change the comment of a record, or set its content to the address of an online node."""
        record = self._choose_record(step)
        online = [node for node in self._world.our_nodes if self._world.headscale.online(node.id)]
        if online and step.seed % 2:
            self._world.cloudflare.change_record(record.id, content=step.random.choice(online).addresses[0], ttl=120)
        else:
            self._world.cloudflare.change_record(record.id, comment="mine now")
        self._add_change_for_stale_reads()
        for current in self._workload.running_passes:
            current.changed_after_read.add(record.id)

    def _choose_record(self, step: Step) -> Record:
        return _choose(step, self._world.our_records)

    def _add_change_for_stale_reads(self) -> None:
        """Create and delete another record.

        The fault "stale read" responds with the state before the last change. It must not hide the change that makes a
        record foreign, because the program could not know about this change.
        """
        record_id = self._world.add_record("later", name="later.example.com", type_="TXT")
        self._world.cloudflare.remove_record(record_id)

    # --- Nodes and addresses -----------------------------------------------------------------------------

    def foreign_node_joins(self, step: Step) -> None:
        self._world.headscale.add_node(NAME, user=USER, registered_by=step.random.choice(("oidc", "cli")))

    def node_deleted(self, step: Step) -> None:
        self._world.headscale.delete_node(_choose(step, self._world.our_nodes).id)

    def node_expired(self, step: Step) -> None:
        self._world.headscale.expire_node(_choose(step, self._world.our_nodes).id)

    def address_changed(self, _step: Step) -> None:
        for pod in self._workload.running_pods:
            if pod.node_id is not None and self._world.headscale.node(pod.node_id) is not None:
                pod.set_addresses(*self._world.headscale.readdress(pod.node_id).addresses)
                # `dns-watch` notices a change of the interface within a second, so its next pass begins soon.
                pod.due_s = min(pod.due_s, self._clock.elapsed_s + 1.0)

    # --- Headscale ---------------------------------------------------------------------------------------

    def headscale_restarted(self, _step: Step) -> None:
        self._world.headscale.restart()
        self._clock.schedule(self._clock.elapsed_s + RECONNECT_S, self._workload.reconnect)

    def headscale_upgraded(self, step: Step) -> None:
        position = VERSIONS.index(self._world.headscale.version)
        if position + 1 < len(VERSIONS):
            self._world.headscale.upgrade(VERSIONS[position + 1])
            if not self._world.headscale.accepts_api_key:
                self.api_key_renewed(step)
            self._clock.schedule(self._clock.elapsed_s + RECONNECT_S, self._workload.reconnect)

    def database_restored(self, step: Step) -> None:
        """Restore the backup, which was made before the first pod started."""
        headscale = self._world.headscale
        current, backup = headscale.backup(), self._backup.copy()
        # Keep the API keys, so that the one in the settings stays valid.
        backup.api_keys = current.api_keys
        backup.last_ids["api_keys"] = current.last_ids["api_keys"]
        headscale.restore(backup)
        for pod in self._workload.pods:
            node = headscale.node(pod.node_id or UNUSED_NODE_ID)
            if pod.node_id is not None and (node is None or node.machine_key != pod.machine_key):
                pod.node_id = UNUSED_NODE_ID
        # Give the ids of nodes and keys that the backup does not contain to nodes of other machines and to other keys.
        for _ in range(current.last_ids["nodes"] - backup.last_ids["nodes"]):
            if step.random.random() < 0.5:
                headscale.add_node("laptop.example.com", user=USER)
            else:
                headscale.add_node(NAME, user=USER, registered_by="oidc")
        while headscale.backup().last_ids["keys"] < current.last_ids["keys"]:
            headscale.create_key(USER)

    # --- Credentials, clock and network ------------------------------------------------------------------

    def token_renewed(self, _step: Step) -> None:
        self._world.write_secret("CLOUDFLARE_API_TOKEN", self._world.cloudflare.set_token())

    def api_key_renewed(self, _step: Step) -> None:
        self._world.write_secret("HEADSCALE_API_KEY", self._world.headscale.rotate_api_key())

    def credentials_revoked(self, _step: Step) -> None:
        """Renew the token and the API key, but not in the pods' files, which are written after the last step."""
        self._workload.credentials_are_valid = False
        self._world.cloudflare.set_token()
        self._world.headscale.rotate_api_key()

    def clock_jumps(self, step: Step) -> None:
        self._clock.skew = timedelta(seconds=step.random.choice((-7200, -300, 300, 7200, 400 * 86_400)))

    def partition(self, step: Step) -> None:
        pod = step.random.choice(self._workload.running_pods)
        pod.cut_off = True
        if pod.node_id is not None:
            self._world.headscale.disconnect(pod.node_id, silently=True)

    def partition_ends(self, _step: Step) -> None:
        for pod in self._workload.running_pods:
            pod.cut_off = False
        self._workload.reconnect()

    # --- Pods --------------------------------------------------------------------------------------------

    def pod_replaced(self, step: Step) -> None:
        for pod in self._workload.running_pods:
            self._workload.end_pod(pod, silently=bool(step.seed % 2))
        self._workload.start_pod()

    def sidecar_restarted(self, _step: Step) -> None:
        for pod in self._workload.running_pods:
            pod.watch = None

    def pod_added(self, _step: Step) -> None:
        if len(self._workload.running_pods) < 3:
            self._workload.start_pod()

    def tailscale_restarted(self, step: Step) -> None:
        """Reconnect a tailscale container with the machine key on its volume. Without a volume, do nothing."""
        pod = step.random.choice(self._workload.running_pods)
        if self._workload.schedule.keeps_machine_key and pod.node_id is not None:
            with suppress(NodeGoneError):
                self._world.headscale.connect(pod.node_id)

    def cluster_node_fails(self, step: Step) -> None:
        """A cluster node fails. Its pod is replaced, and Headscale still reports the old node as online."""
        self._workload.end_pod(step.random.choice(self._workload.running_pods), silently=True)
        self._workload.start_pod()


def _choose(step: Step, items: list[Item]) -> Item:
    if not items:
        raise _ImpossibleError
    return step.random.choice(items)
