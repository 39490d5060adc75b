"""What dns-watch is configured with, remembers and decides, as frozen values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from lifecycle.dns_watch.observation import Interface, Missing
from lifecycle.domain.changes import Change, WriteRestartMarker
from lifecycle.domain.errors import ApiError, LifecycleError
from lifecycle.domain.events import Event
from lifecycle.domain.model import IpAddress, KeySpec, Node, PreAuthKey, RecordSpec, User
from lifecycle.domain.ownership import NodeIdentity, RecordIdentity


@dataclass(frozen=True, slots=True)
class WatchConfig:
    """The settings that decisions depend on.

    Attributes:
        records: criteria for owning a record.
        hostname: the node's hostname.
        user: the configured Headscale user; None = the only one.
        tags: tags of our pre-auth keys.
        key_spec: the pre-auth key to create for healing, by its user.
        key_path: the key file, for messages.
        retry_interval: longest interval between lookups of an unregistered node.
        max_retries: lookups without a match before giving up; 0 = never give up.
        poll_interval: interval between polls of a registered node.
        min_interval: shortest interval between polls once the node was registered.
        verify_interval: interval between reads of the record if nothing changed.
        has_interface: a VPN interface is expected in this pod.
        warns_of_slow_polling: Headscale is reached through exec.
    """

    records: RecordIdentity
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
    min_interval: timedelta
    verify_interval: timedelta
    has_interface: bool
    warns_of_slow_polling: bool


@dataclass(frozen=True, slots=True)
class Moment:
    """The current time.

    Attributes:
        utc: aware UTC, by Headscale's clock if that is known.
        monotonic_s: seconds that never go back.
        jitter: a random number from 0 to 1, so that decisions can be spread and stay pure.
    """

    utc: datetime
    monotonic_s: float
    jitter: float


# --- What is remembered -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class KnownNode:
    """This pod's node when it was last seen. An id alone identifies nothing: a restored database reuses ids."""

    id: str
    machine_key: str | None

    def is_same(self, node: Node) -> bool:
        """Return True if the node has the same id and, if it is known, the same machine key."""
        return node.id == self.id and self.machine_key in (None, node.machine_key)


@dataclass(frozen=True, slots=True)
class LossCount:
    """Consecutive observations of the same loss.

    Attributes:
        is_superseded: a later pod has the name.
        since_s: monotonic time of the first one.
    """

    kind: Missing
    is_superseded: bool
    observations: int
    since_s: float


@dataclass(frozen=True, slots=True)
class HealState:
    """Memory of the repair of a lost node.

    Attributes:
        losses: None = the last lookup found the node, failed, or was inconclusive.
        lost: the confirmed loss.
        is_superseded: a later pod has the name, confirmed.
        key: the usable key with which the node can register again; None if there is none.
        attempts: keys that were created since the node was last found.
        not_before_s: monotonic time before which the key is left alone.
    """

    losses: LossCount | None = None
    lost: Missing | None = None
    is_superseded: bool = False
    key: PreAuthKey | None = None
    attempts: int = 0
    not_before_s: float = 0.0


@dataclass(frozen=True, slots=True)
class RecordState:
    """Memory of the DNS record.

    Attributes:
        compared: what the records were last compared with; None = they have to be read.
        verify_at_s: monotonic time of the next read if nothing changes.
        not_before_s: monotonic time before which Cloudflare is left alone.
        failures: consecutive failures.
        in_sync: the record was right when it was last read.
        reason: why it is not; "" if it is.
        addresses: what was published last.
        verified_at_s: monotonic time when it was last right; None = never.
    """

    compared: tuple[RecordSpec, ...] | None = None
    verify_at_s: float = 0.0
    not_before_s: float = 0.0
    failures: int = 0
    in_sync: bool = False
    reason: str = "no pass has finished yet"
    addresses: tuple[IpAddress, ...] = ()
    verified_at_s: float | None = None


@dataclass(frozen=True, slots=True)
class ExpiryState:
    """Memory of expiry warnings.

    Attributes:
        read_at_s: monotonic time when the list of API keys is read next.
        api_key_warned_at_s: monotonic time of the last warning; None = none yet.
        node_warned_at_s: the same for the node.
    """

    read_at_s: float = 0.0
    api_key_expires_at: datetime | None = None
    api_key_warned_at_s: float | None = None
    node_warned_at_s: float | None = None


@dataclass(frozen=True, slots=True)
class State:
    """Everything that dns-watch remembers between passes.

    Attributes:
        node: this pod's node when it was last found; None = never yet.
        is_registered: the last conclusive lookup found it.
        node_expires_at: when it has to log in again.
        identity: criteria for owning a node; None until the users were read.
        superseded_by: the id of the later pod's node for which this pod stands down.
        interface: the VPN addresses at the last pass.
        interface_seen_s: monotonic time when the pod last had an interface, or started.
        interface_changed_s: monotonic time of the last change.
        lookups: consecutive conclusive lookups without a match.
        lookups_at_change: their number when the interface last changed.
        failures: consecutive failures of Headscale.
        assumed_user: the name of the user that was assumed and reported.
        reported_problem: the identification problem that was reported.
        restart_marker: the content of the restart marker; None = there is none, "" = it is not known.
        reported_slow_polling, reported_no_metadata: reported once.
    """

    node: KnownNode | None = None
    is_registered: bool = False
    node_expires_at: datetime | None = None
    identity: NodeIdentity | None = None
    superseded_by: str | None = None
    interface: Interface = None
    interface_seen_s: float = 0.0
    interface_changed_s: float = 0.0
    lookups: int = 0
    lookups_at_change: int = 0
    failures: int = 0
    headscale_version: str = ""
    heal: HealState = field(default_factory=HealState)
    records: RecordState = field(default_factory=RecordState)
    expiry: ExpiryState = field(default_factory=ExpiryState)
    assumed_user: str = ""
    reported_problem: str = ""
    restart_marker: str | None = ""
    reported_slow_polling: bool = False
    reported_no_metadata: bool = False


# --- What is decided --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Failure:
    """A failed exchange with an upstream, and the backoff after it.

    Attributes:
        failures: consecutive failures of this upstream.
        wait_s: seconds until its next request.
    """

    error: ApiError
    failures: int
    wait_s: float


@dataclass(frozen=True, slots=True)
class Decision:
    """The result of one decision.

    Attributes:
        state: what to remember.
        changes: what to change, in this order; record changes are one transaction.
        specs: what the records are after the record changes; None if there are none.
        wait_s: seconds until the next pass.
        events: what to log, in this order.
        succeeded: the upstreams that returned what was requested.
        failures: the upstreams that did not.
        give_up: why the command ends; None = it does not.
        marker: the change of the restart marker, after all other changes; None = it stays as it is.
    """

    state: State
    changes: tuple[Change, ...] = ()
    specs: tuple[RecordSpec, ...] | None = None
    wait_s: float = 0.0
    events: tuple[Event, ...] = ()
    succeeded: tuple[str, ...] = ()
    failures: tuple[Failure, ...] = ()
    give_up: str | None = None
    marker: WriteRestartMarker | None = None


@dataclass(frozen=True, slots=True)
class Applied:
    """What became of a decision's changes.

    Attributes:
        key: the pre-auth key that was written.
        key_error: why no key was written.
        records_error: why the records were not changed.
    """

    key: PreAuthKey | None = None
    key_error: LifecycleError | None = None
    records_error: ApiError | None = None
