"""The immutable values of dns-watch: its settings, and what it observes, remembers and decides.

Nodes and records are ours if this workload owns them. docs/architecture.md defines the terms.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import TypeAlias

from lifecycle.domain.changes import Change
from lifecycle.domain.errors import ApiError, KeyFileError, LifecycleError
from lifecycle.domain.events import Event
from lifecycle.domain.model import IpAddress, KeyMetadata, KeySpec, Node, PreAuthKey, Record, RecordSpec, User
from lifecycle.domain.ownership import NodeOwnership, RecordOwnership

InterfaceAddresses: TypeAlias = tuple[IpAddress, ...] | None
"""The VPN addresses of this pod's interface, sorted; None if the interface does not exist."""

NO_METADATA = KeyMetadata(None)
"""Key metadata that names neither a key nor a node."""


@dataclass(frozen=True, slots=True)
class WatchConfig:
    """The settings that decisions depend on.

    Attributes:
        main_name_ownership: criteria for owning a record at the main name.
        further_name_ownerships: criteria for owning a record at each further name.
        user: the configured Headscale user; None = the only one.
        key_spec: returns the properties of the pre-auth key to create for a user.
        key_path: the path of the key file, for messages.
        retry_interval: longest interval between lookups of a node that is not registered yet.
        max_retries: number of lookups that do not find the node after which dns-watch gives up; 0 = no limit.
        poll_interval: shortest interval between polls of a registered node.
        min_poll_interval: lower limit of all waits between passes after the first registration; 0 = none.
        verify_interval: interval between reads of the records if nothing changed.
        expects_interface: tailscale creates a VPN interface in this pod.
    """

    main_name_ownership: RecordOwnership
    hostname: str
    user: str | None
    tags: frozenset[str]
    ttl_s: int
    ipv6: bool
    key_spec: Callable[[User], KeySpec]
    key_path: str
    self_heal: bool
    retry_interval: timedelta
    max_retries: int
    poll_interval: timedelta
    min_poll_interval: timedelta
    verify_interval: timedelta
    expects_interface: bool
    further_name_ownerships: tuple[RecordOwnership, ...] = ()

    @property
    def record_ownerships(self) -> tuple[RecordOwnership, ...]:
        """Criteria for owning a record at each name, the main name first."""
        return self.main_name_ownership, *self.further_name_ownerships


@dataclass(frozen=True, slots=True)
class Moment:
    """The current time.

    Attributes:
        utc: the time in UTC, by Headscale's clock if Headscale has responded.
        monotonic_s: seconds that never go back.
        jitter: a random number from 0 to 1, which spreads the requests of several pods.
    """

    utc: datetime
    monotonic_s: float
    jitter: float


class LossKind(StrEnum):
    """Why Headscale has no usable node of this pod."""

    GONE = "gone"
    """Headscale reports that the node does not exist, and its list of nodes does not contain the node."""
    EXPIRED = "expired"
    """The node exists and has to log in again."""
    STRANDED = "stranded"
    """This pod's interface has a VPN address that no node has, and this workload has no unexpired node."""
    NEVER_FOUND = "not found"
    """No node of this pod was ever found, and this workload has no other unexpired node."""


@dataclass(frozen=True, slots=True)
class Loss:
    """The loss of this pod's node.

    Attributes:
        node: the lost node; None if it is not known.
        is_list_empty: Headscale lists no nodes at all.
        successor: the newest successor; None if there is none, or if this pod's node is neither gone nor expired.
    """

    kind: LossKind
    node: KnownNode | None = None
    is_list_empty: bool = False
    successor: Node | None = None

    @property
    def evidence(self) -> tuple[object, ...]:
        """What has to stay the same in consecutive observations, so that they confirm the loss."""
        return self.kind, self.successor is not None, self.is_list_empty


@dataclass(frozen=True, slots=True)
class Unregistered:
    """No unexpired node was identified as this pod's.

    Attributes:
        reason: why no node was found, for the log.
        loss: the loss of the node; None if it is uncertain whether the node is lost.
        error: the problem with a setting or a file that prevents the identification of the node.
    """

    reason: str
    loss: Loss | None = None
    error: LifecycleError | None = None


@dataclass(frozen=True, slots=True)
class KeyCheck:
    """The comparison of the key file, and of the key metadata beside it, with Headscale's list of keys.

    Attributes:
        metadata: the key metadata; NO_METADATA if its file does not exist.
        key: the key in Headscale's list that the metadata identifies; None if there is none.
        is_in_file: the key file contains the key that the metadata identifies.
    """

    metadata: KeyMetadata
    key: PreAuthKey | None = None
    is_in_file: bool = False


@dataclass(frozen=True, slots=True)
class ApiKeyRead:
    """The time when the API key in use expires; None = never, or the time cannot be determined."""

    expires_at: datetime | None


@dataclass(frozen=True, slots=True)
class RecordsRead:
    """The records at our names that a decision needs.

    Attributes:
        records: all records at the main name, and our records at the further names. If our records at a further name
            are not as desired, all records at this further name are included.
        apex: the zone's own name; None if it is not known.
        preferred_nodes: the result of `nodes.preferred_nodes`; empty if `needs_preferred_nodes` returned False.
        is_repeated: the desired records were the same at the last comparison.
    """

    records: tuple[Record, ...]
    apex: str | None = None
    preferred_nodes: tuple[Node, ...] = ()
    is_repeated: bool = False


@dataclass(frozen=True, slots=True)
class Observation:
    """Everything that one pass read. A value that was not read is None, and an error stands for a failed read.

    Attributes:
        node_ownership: criteria for owning a node; None also if it is unknown which Headscale user owns our nodes.
        metadata: the key metadata; NO_METADATA if it was not read, or if its file does not exist.
        version: Headscale's version; "" if it could not be read.
        node_read_s: duration of a successful read of the node by its id; None if the node was found in a list.
        fleet_size: the number of nodes in Headscale that registered with a pre-auth key.
    """

    interface: InterfaceAddresses
    node: Node | Unregistered | ApiError
    node_ownership: NodeOwnership | None = None
    metadata: KeyMetadata = NO_METADATA
    key_check: KeyCheck | ApiError | KeyFileError | None = None
    records: RecordsRead | ApiError | None = None
    version: str = ""
    api_key: ApiKeyRead | ApiError | None = None
    node_read_s: float | None = None
    fleet_size: int | None = None


@dataclass(frozen=True, slots=True)
class KnownNode:
    """This pod's node when it was last found.

    The id alone does not identify the node: Headscale assigns ids again after its database was restored from a backup.
    """

    id: str
    machine_key: str | None

    def is_same(self, node: Node) -> bool:
        """Return True if the node has the same id, and the same machine key if that was known."""
        return node.id == self.id and self.machine_key in (None, node.machine_key)


@dataclass(frozen=True, slots=True)
class HealState:
    """What is remembered about a lost node and its repair.

    Attributes:
        observed: the loss that the last lookup showed; None if the lookup failed, found the node, or did not show
            whether the node is lost.
        observations: how often this loss was observed in succession, with the same evidence.
        observed_since_s: the monotonic time of the first of these observations.
        lost: the kind of the confirmed loss, except NEVER_FOUND; None if there is none.
        key: the usable key in the key file, with which the node can register again; None if there is none.
        attempts: how many keys were requested since the node was last found.
        not_before_s: monotonic time before which the key is not replaced.
        reported_no_metadata: the missing key metadata was reported.
    """

    observed: Loss | None = None
    observations: int = 0
    observed_since_s: float = 0.0
    lost: LossKind | None = None
    key: PreAuthKey | None = None
    attempts: int = 0
    not_before_s: float = 0.0
    reported_no_metadata: bool = False


@dataclass(frozen=True, slots=True)
class RecordState:
    """What is remembered about the DNS records. All times are monotonic.

    Attributes:
        compared_specs: the desired records at the last comparison with the existing ones; None = compare again.
        verify_at_s: time of the next read if nothing changes.
        not_before_s: time of the next request to Cloudflare after a failure.
        failures: consecutive failures of Cloudflare.
        reason: why the records are not in sync; "" if they are in sync.
        addresses: the addresses that were published last.
        verified_at_s: time of the last read that found the records as desired.
        last_failure: the last failure of an upstream since then; "" if there is none.
    """

    compared_specs: tuple[RecordSpec, ...] | None = None
    verify_at_s: float = 0.0
    not_before_s: float = 0.0
    failures: int = 0
    reason: str = "no pass has finished yet"
    addresses: tuple[IpAddress, ...] = ()
    verified_at_s: float = 0.0
    last_failure: str = ""

    @property
    def in_sync(self) -> bool:
        """True if the records were as desired when they were last read."""
        return not self.reason


@dataclass(frozen=True, slots=True)
class State:
    """Everything that dns-watch remembers between passes. All times are monotonic.

    Attributes:
        node: this pod's node when it was last found; None = never yet.
        is_registered: the last lookup found the node. Lookups whose request failed are not counted.
        node_warning_due_s: time of the next warning that the node expires soon.
        api_key_read_due_s: time when the list of API keys is read next.
        node_ownership: criteria for owning a node; None until the users were read.
        superseded_by: the id of the node to which this pod leaves the records, because the address of that preferred
            node is published, or because this pod's node is lost and that node is its successor; None if there is none.
        interface_seen_s: time when the pod last had a VPN interface, or when dns-watch started if it never had one.
        lookups: consecutive lookups that did not find the node. Lookups whose request failed are not counted.
        lookups_at_interface_change: the value of `lookups` when the interface last changed.
        failures: consecutive failures of Headscale.
        idle_polls: consecutive polls after which nothing was changed or reported.
        node_read_s: duration of a read of the node by its id, as a moving average.
        fleet_size: the number of nodes that registered with a pre-auth key, when all nodes were last listed.
        fleet_count_due_s: time when all nodes are listed next to update `fleet_size`; 0 = before the first pass.
        reported_problem: the identification problem that was reported last.
    """

    node: KnownNode | None = None
    is_registered: bool = False
    node_expires_at: datetime | None = None
    node_warning_due_s: float = 0.0
    api_key_expires_at: datetime | None = None
    api_key_warning_due_s: float = 0.0
    api_key_read_due_s: float = 0.0
    node_ownership: NodeOwnership | None = None
    superseded_by: str | None = None
    interface: InterfaceAddresses = None
    interface_seen_s: float = 0.0
    interface_changed_s: float = 0.0
    lookups: int = 0
    lookups_at_interface_change: int = 0
    failures: int = 0
    idle_polls: int = 0
    node_read_s: float = 0.0
    fleet_size: int = 0
    fleet_count_due_s: float = 0.0
    headscale_version: str = ""
    heal: HealState = field(default_factory=HealState)
    records: RecordState = field(default_factory=RecordState)
    reported_problem: str = ""


@dataclass(frozen=True, slots=True)
class Failure:
    """A failure of an upstream, which is Headscale, Cloudflare or the Kubernetes API.

    Attributes:
        failures_in_a_row: how often the upstream has failed since its last success.
        wait_s: seconds until the next request to the upstream.
    """

    error: ApiError
    failures_in_a_row: int
    wait_s: float


@dataclass(frozen=True, slots=True)
class Decision:
    """What to change, remember and log, and when the next pass is due.

    Attributes:
        changes: what to change, in this order. The record changes at one name are one transaction. A decision that
            creates a key changes no records.
        records_after: what to remember about the records once they are changed; None if they are not changed.
        wait_s: seconds until the next pass.
        events: what to log, in this order.
        failures: the failures of upstreams.
        give_up: why dns-watch ends; None = it continues.
    """

    state: State
    changes: tuple[Change, ...] = ()
    wait_s: float = 0.0
    records_after: RecordState | None = None
    events: tuple[Event, ...] = ()
    failures: tuple[Failure, ...] = ()
    give_up: str | None = None


ApplyResult: TypeAlias = PreAuthKey | ApiError | KeyFileError | None
"""The result of making a decision's changes: the key that was written, or the first error; None if there is neither.

An ApiError is about the records if the decision changes them, else about the key.
"""
