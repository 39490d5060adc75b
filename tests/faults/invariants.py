"""The invariants: what must be true at every request and after every step of a sequence of faults and events.

They are checked with the data of the simulators, without the program's own rules. docs/architecture.md lists the
guarantees "Never 1" to "Never 8". A pass is one run of `cleanup`, or one iteration of the loop of `dns-watch`.
"""

from __future__ import annotations

import json
import stat
import tracemalloc
from ipaddress import ip_address
from typing import Any, Final
from urllib.parse import parse_qs

from lifecycle.dns_watch.loop import DnsWatch
from lifecycle.health.metrics import render_metrics
from tests.builders import NAME
from tests.faults.schedule import COMPRESSED, HIDDEN_NODES, NO_ITEMS, UNDETECTABLE
from tests.faults.special_faults import DECODED_BYTES
from tests.faults.workload import MISLED_S, Pass, Pod, Workload
from tests.simulators.cloudflare import Record
from tests.simulators.headscale import Node
from tests.simulators.upstream import Exchange, Upstream
from tests.tally import add_to_count

MAX_TRACED_BYTES: Final = DECODED_BYTES // 2
"""The maximum memory of a pass. A pass that decodes a whole compressed response needs more."""


class BrokenError(AssertionError):
    """An invariant does not hold."""


class Invariants:
    """Checks the invariants of a workload. The methods `before` and `after` are called before and after each request.

    Args:
        workload: the pods and upstreams to check.
        log_events: everything that the program logged.
    """

    def __init__(self, workload: Workload, log_events: list[Any]) -> None:
        self._workload = workload
        self._world = workload.world
        self._clock = workload.clock
        self._log_events = log_events
        self._foreign_records: dict[str, Record] = {}
        self._foreign_nodes: dict[int, Node] = {}
        self._records_before: dict[str, Record] = {}
        self._nodes_before: dict[int, Node] = {}

    # --- Foreign objects ---------------------------------------------------------------------------------

    def remember_foreign_objects(self) -> None:
        """Remember the foreign records and nodes, which the program must not change."""
        world = self._world
        self._foreign_records = {
            record.id: record for record in world.all_records.values() if not world.is_our_record(record)
        }
        self._foreign_nodes = {node.id: node for node in world.headscale.nodes if not world.is_our_node(node)}

    def check_foreign_objects(self) -> None:
        """Never 1 and 2: no foreign record or node has changed."""
        records = self._world.all_records
        for record_id, record in self._foreign_records.items():
            if records.get(record_id) != record:
                raise BrokenError(f"Never 1: {record} was foreign and is now {records.get(record_id)}")
        for node_id, node in self._foreign_nodes.items():
            now = self._world.headscale.node(node_id)
            if now is None or (now.expires_at, now.user_id) != (node.expires_at, node.user_id):
                raise BrokenError(f"Never 2: node {node_id} of {node.name} was foreign and is now {now}")

    # --- Requests ----------------------------------------------------------------------------------------

    def before(self, upstream: Upstream) -> None:
        """Record the state before a request."""
        self.check_memory()
        if upstream is self._world.cloudflare:
            self._records_before = self._world.all_records
        else:
            self._nodes_before = {node.id: node for node in self._world.headscale.nodes}

    def after(self, upstream: Upstream, request: Exchange) -> None:
        """Check the effect of a request."""
        if not self._workload.running_passes:
            return
        current = self._workload.running_passes[-1]
        fault = _fault(request)
        if fault == COMPRESSED:
            tracemalloc.start()
        if _looks_correct(request) and fault != "stale read" and request.path.endswith("/dns_records"):
            names, records = parse_qs(request.query).get("name", ()), self._world.all_records
            current.changed_after_read -= {record_id for record_id, record in records.items() if record.name in names}
        if fault in UNDETECTABLE:
            current.disturbed = True
        # If dns-watch knows its node, and the list does not contain the node, dns-watch also reads the node by its id.
        # A list without this node therefore misleads dns-watch only if it knows no node, or if the node does not exist.
        known = current.pod.watch.state.node if current.pod.watch else None
        is_known = known is not None and self._world.headscale.node(int(known.id)) is not None
        if fault == "stale read" or (fault == HIDDEN_NODES and not is_known):
            current.pod.misled_at_s = self._clock.elapsed_s
        if request.is_write:
            self._check_reads_before(current, upstream, request)
            if upstream is self._world.cloudflare:
                self._check_record_change(current, request)
            else:
                self._check_node_change(current)
                self._check_key_creation(current.pod, request)
        current.requests.append(request)

    def check_memory(self) -> None:
        """Check how much memory the program needed for the last response, if it had the fault COMPRESSED."""
        if not tracemalloc.is_tracing():
            return
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        if peak > MAX_TRACED_BYTES:
            raise BrokenError(f"a compressed response took {peak >> 20} MiB")

    def _check_reads_before(self, current: Pass, upstream: Upstream, request: Exchange) -> None:
        """Never 3: a change is based only on complete and correct responses."""
        reads = [read for read in current.requests if read.method == "GET"]
        nodes = [read for read in reads if read.path == "/api/v1/node"]
        if upstream is self._world.cloudflare:
            records = [read for read in reads if read.path.endswith("/dns_records")]
            reads_by_comment = [read for read in records if "match=any" in read.query]
            self._check_looks_correct(request, _last_list(records) + _last_list(reads_by_comment))
            if not current.pod.initialized and nodes and _fault(nodes[-1]) == NO_ITEMS:
                # This is a pass of cleanup, which cannot know that an empty list is wrong.
                return
            if current.pod.initialized:
                # If dns-watch knows its node, it reads the node by its id instead of the list.
                nodes = [read for read in reads if read.path.startswith("/api/v1/node")]
        elif request.method != "DELETE":
            return
        self._check_looks_correct(request, nodes[-1:])

    def _check_looks_correct(self, request: Exchange, reads: list[Exchange]) -> None:
        if not reads or not all(map(_looks_correct, reads)):
            raise BrokenError(f"Never 3: {request.method} {request.path} after {reads or 'no read'}")

    def _check_record_change(self, current: Pass, request: Exchange) -> None:
        before, now = self._records_before, self._world.all_records
        changed = {record_id for record_id in before.keys() | now.keys() if before.get(record_id) != now.get(record_id)}
        if unread := changed & current.changed_after_read:
            raise BrokenError(f"Never 1: {request.method} of records {unread}, which changed after they were read")
        if not current.disturbed and self._requests_no_change(request, before):
            raise BrokenError(f"Never 7: a write that changes nothing: {request}")
        pod = current.pod
        for record_id in changed & now.keys():
            record, old = now[record_id], before.get(record_id)
            if old is not None and old.content == record.content:
                continue
            # The address of any node of ours is allowed, because Headscale assigns an address again after its node was
            # deleted. The address of an expired node is also allowed, because a pod whose clock is behind cannot know
            # that the node has expired.
            our_nodes = [node for node in self._world.headscale.nodes if self._world.is_our_node(node)]
            addresses = {address for node in our_nodes for address in node.addresses}
            on_interface = pod.interface.addresses
            if record.type == "CNAME":
                is_expected = record.content == NAME
            else:
                is_expected = record.content in addresses and (
                    on_interface is None or ip_address(record.content) in on_interface
                )
            if not current.disturbed and not is_expected:
                raise BrokenError(
                    f"pod {pod.number} with node {pod.node_id} and addresses {on_interface} published {record.content}"
                )
            foreign_ids = {other.id for other in self._world.blocking_records if other.name == NAME}
            if record.type == "CNAME" and foreign_ids - current.changed_after_read:
                raise BrokenError(f"Never 1: {record.name} was pointed to a foreign record")
            overwritten = current.successors_at_start & self._workload.published_successors(pod, before)
            if overwritten and not current.disturbed:
                raise BrokenError(f"Never 6: pod {pod.number} (node {pod.node_id}) overwrote nodes {overwritten}")

    def _requests_no_change(self, request: Exchange, before: dict[str, Record]) -> bool:
        """Return True if a request has no effect because the record has the requested values already."""
        body: dict[str, Any] = json.loads(request.body or b"{}")
        patches = body.get("patches", [])
        if request.method == "PATCH":
            patches = [body | {"id": request.path.rpartition("/")[2]}]
        return any(
            patch["id"] in before
            and all(getattr(before[patch["id"]], name) == value for name, value in patch.items() if name != "id")
            for patch in patches
        )

    def _check_node_change(self, current: Pass) -> None:
        now = {node.id for node in self._world.headscale.nodes}
        deleted = [node for node in self._nodes_before.values() if node.id not in now]
        if deleted and current.pod.initialized:
            raise BrokenError(f"dns-watch deleted {deleted}")
        for node in deleted:
            if not self._world.is_our_node(node):
                raise BrokenError(f"Never 2: {node} is not ours")

    def _check_key_creation(self, pod: Pod, request: Exchange) -> None:
        """Check that the sidecar creates a key only if its node is lost and the key in its file is invalid."""
        if request.path != "/api/v1/preauthkey" or not pod.initialized:
            return
        add_to_count("keys made by dns-watch")
        if self._world.environment["SELF_HEAL"] != "true":
            raise BrokenError(f"pod {pod.number} creates a key although SELF_HEAL is off")
        if self._clock.skew or self._is_misled(pod):
            return
        node = self._world.headscale.node(pod.node_id or 0)
        if node is not None and not self._world.is_expired(node):
            raise BrokenError(f"Never 3: pod {pod.number} creates a key although its node {node.id} exists")
        current_key = pod.key_file.read_text() if pod.key_file.exists() else ""
        if any(
            key.key == current_key and not key.used and key.expires_at > self._clock.true_now()
            for key in self._world.headscale.keys
        ):
            raise BrokenError(f"pod {pod.number} creates a key although the one in its file is valid")

    def _is_misled(self, pod: Pod) -> bool:
        """Return True if a pod has recently received a wrong response that it could not detect."""
        return self._clock.elapsed_s - pod.misled_at_s < MISLED_S

    # --- Pods --------------------------------------------------------------------------------------------

    def check_key_files(self) -> None:
        """Never 4: if the key file exists, it contains a whole key."""
        # Include the keys that Headscale does not have any more since its database was restored.
        keys = set(self._world.headscale.secrets())
        for pod in self._workload.pods:
            if not pod.key_file.exists():
                continue
            if pod.key_file.read_text() not in keys:
                raise BrokenError(f"Never 4: the key file holds {pod.key_file.read_text()!r}")
            mode = stat.S_IMODE(pod.key_file.stat().st_mode)
            if mode != 0o640:
                raise BrokenError(f"Never 4: the key file has mode {mode:o}")

    def check_may_give_up(self, pod: Pod) -> None:
        """Never 8: dns-watch ends only if MAX_RETRIES is set and it has never found its node."""
        if self._world.environment["MAX_RETRIES"] == "0":
            raise BrokenError("Never 8: dns-watch gave up with MAX_RETRIES=0")
        if pod.watch is not None and pod.watch.state.node is not None:
            raise BrokenError("Never 8: dns-watch gave up although it had found its node")

    def check_livez(self, pod: Pod, watch: DnsWatch) -> None:
        """Check that the endpoint /livez reports success after a pass."""
        if not watch.status.alive:
            raise BrokenError(f"pod {pod.number}: /livez fails although the loop makes progress")

    def check_restart_helps(self, pod: Pod) -> None:
        """Check that dns-watch requests a restart of tailscale only with a lost node and a valid key in the file."""
        node = self._world.headscale.node(pod.node_id or 0)
        if node is not None and not self._world.is_expired(node) and not self._is_misled(pod):
            raise BrokenError(f"pod {pod.number} requests a restart of tailscale although node {node.id} exists")
        now = self._clock.true_now()
        in_file = [key for key in self._world.headscale.keys if key.key == pod.key_file.read_text()]
        if not self._clock.skew and not any(key.expires_at > now and not key.used for key in in_file):
            raise BrokenError(f"pod {pod.number} requests a restart of tailscale with an invalid key: {in_file}")

    def check_secrets(self) -> None:
        """Never 5: no output contains a secret."""
        world = self._world
        output = [repr(self._log_events)]
        for pod in self._workload.pods:
            if pod.watch is not None:
                output += [render_metrics(pod.watch.status, accept="")[1].decode(), repr(pod.watch.status)]
            # The key file and its temporary file may contain the key.
            output += [
                file.read_text() for file in pod.folder.glob("*") if file.name not in {"authkey", ".authkey.tmp"}
            ]
        output += [
            f"{request.path}?{request.query}" for request in world.headscale.requests + world.cloudflare.requests
        ]
        everything = "\n".join(output)
        for secret in world.headscale.secrets() + world.cloudflare.secrets():
            add_to_count("secrets searched")
            if secret in everything:
                start = everything.index(secret)
                context = everything[max(0, start - 200) : start]
                raise BrokenError(f"Never 5: the output contains a secret: {context}…")

    # --- Recovery ----------------------------------------------------------------------------------------

    def out_of_sync(self) -> str:
        """Return what is out of sync; "" if everything is in sync."""
        pod, world = self._workload.pod_with_newest_node, self._world
        if pod is None:
            # No pod has a node.
            if self._can_recover():
                return "no pod has a node, although the pods can register again"
            add_to_count("recoveries without a node")
            ready = [
                each.number
                for each in self._workload.running_pods
                if each.watch is not None and each.watch.status.ready
            ]
            return f"pods {ready} report that the record is in sync, but have no node" if ready else ""
        node = next(node for node in world.our_nodes if node.id == pod.node_id)
        desired = world.desired_records(node)
        ours = world.our_records
        is_in_sync = sorted((record.name, record.content, record.comment) for record in ours) == sorted(
            desired
        ) and all((record.ttl, record.proxied) == (60, False) for record in ours)
        if not is_in_sync:
            states = [
                (each.number, each.node_id, each.watch and each.watch.status.readiness())
                for each in self._workload.running_pods
            ]
            return f"node {node.id} of pod {pod.number} should have {desired}; our records are {ours}; {states}"
        if pod.watch is None or not pod.watch.status.ready:
            reason = pod.watch.state.records.reason if pod.watch else "no sidecar"
            return f"the record is in sync, but pod {pod.number} reports that it is not: {reason}"
        return ""

    def _can_recover(self) -> bool:
        """Return True if every running pod can get a new node without a restart of the pod.

        dns-watch creates a new key only if it knows that its pod had a node: it has found the node itself, or it can
        read the VPN interface, and the file beside the key file names the node.
        """
        return self._world.environment["SELF_HEAL"] == "true" and all(
            pod.watch is not None
            and pod.key_file.exists()
            and (pod.watch.state.node is not None or (pod.has_interface and pod.metadata_node_id is not None))
            for pod in self._workload.running_pods
        )


def _fault(request: Exchange) -> str:
    """Return the name of the fault that was injected into a request; "" if the response is correct."""
    return request.fault.name if request.fault else ""


def _looks_correct(request: Exchange) -> bool:
    """Return True if the response is correct, or if the program cannot detect that it is wrong."""
    return _fault(request) in {"", *UNDETECTABLE} and request.status == 200


def _last_list(reads: list[Exchange]) -> list[Exchange]:
    """Return the requests that read the last list: for each page, the last one."""
    pages = [parse_qs(read.query).get("page", ["1"])[0] for read in reads]
    start = max((number for number, page in enumerate(pages) if page == "1"), default=len(reads))
    return list(dict(zip(pages[start:], reads[start:], strict=True)).values())
