"""Pure functions that decide when this pod's node is lost, and when a new pre-auth key is needed to register again.

A key is usable if a node can register with it. A restarted tailscale container registers with the key in the key file.
"""

from __future__ import annotations

from dataclasses import replace

from lifecycle.dns_watch.state import HealState, KeyCheck, Loss, LossKind, Moment, State, WatchConfig
from lifecycle.domain.backoff import add_jitter, doubled
from lifecycle.domain.changes import WriteFreshKey
from lifecycle.domain.errors import KeyFileError
from lifecycle.domain.events import Event, error
from lifecycle.domain.model import User

# A loss is confirmed after this many observations over this many seconds. While Headscale restarts, or if its list is
# incomplete, a node can seem to be gone for a few seconds.
CONFIRMING_OBSERVATIONS = 3
CONFIRMING_S = 60.0

# If Headscale lists no nodes at all, a loss is confirmed only after this many seconds, because Headscale may use an
# empty database while its database is restored.
EMPTY_LIST_CONFIRMING_S = 300.0

# The interval between checks whether a new key is needed. After each new key, the next check is later than after the
# previous one: the interval doubles, up to the maximum.
_FIRST_PAUSE_S = 60.0
_MAX_PAUSE_S = 3600.0

_LOSS_REASONS = {
    LossKind.GONE: "Headscale reports that the node does not exist",
    LossKind.EXPIRED: "the node has expired and has to log in again",
    LossKind.STRANDED: "this pod has a VPN address that no node in Headscale has",
}


def count_loss(heal: HealState, loss: Loss, now: Moment) -> HealState:
    """Count an observation of a loss, and confirm the loss after enough observations over enough time."""
    if heal.observed is None or heal.observed.evidence != loss.evidence:
        heal = replace(heal, observations=0, observed_since_s=now.monotonic_s)
    heal = replace(heal, observed=loss, observations=heal.observations + 1)
    if is_confirmed(heal, now) and loss.kind is not LossKind.NEVER_FOUND:
        heal = replace(heal, lost=loss.kind)
    return heal


def loss_events(heal: HealState, loss: Loss, *, reported: LossKind | None, config: WatchConfig) -> tuple[Event, ...]:
    """Report a confirmed loss, unless this kind of loss was reported before."""
    if heal.lost in (None, reported):
        return ()
    if not config.self_heal:
        advice = "Unless the pod recovers with its present key, restart the pod, or set SELF_HEAL=true."
    elif heal.lost is LossKind.STRANDED or loss.successor is not None:
        advice = "Restart the pod."
    else:
        advice = (
            "SELF_HEAL restarts tailscale with a new key. If the node is still lost after ten minutes, restart the pod."
        )
    node_id = loss.node.id if loss.node else None
    return (error("node.lost", node_id=node_id, reason=_LOSS_REASONS[heal.lost], advice=advice),)


def is_key_check_due(state: State, now: Moment) -> bool:
    """Return True if the key in the key file has to be compared with Headscale's list of keys.

    While a restart of tailscale would bring the node back, the key is checked in each pass, because a restart no longer
    helps once a node has used the key.
    """
    if state.heal.observed is None or state.heal.observed.successor is not None:
        return False
    return _is_renewal_due(state.heal, now) or usable_key_id(state, now) is not None


def usable_key_id(state: State, now: Moment) -> str | None:
    """Return the id of the usable key with which a restart of tailscale brings the node back; None = do not restart.

    The loss has to be confirmed and current, there must be no successor, and the key file has to have a usable key.
    If the VPN interface changed within the last minute, a restart may be in progress, and another one does not help.
    After LossKind.STRANDED, the result is None: the node's id is unknown, so Headscale cannot confirm that it is gone.
    """
    heal = state.heal
    if heal.observed is None or heal.lost not in (LossKind.GONE, LossKind.EXPIRED) or state.superseded_by is not None:
        return None
    if heal.key is None or not heal.key.is_usable(now.utc):
        return None
    return heal.key.id if now.monotonic_s - state.interface_changed_s >= CONFIRMING_S else None


def renew_key(
    state: State,
    loss: Loss,
    key_check: KeyCheck | KeyFileError,
    *,
    user: User,
    config: WatchConfig,
    now: Moment,
) -> tuple[HealState, str | None, WriteFreshKey | None]:
    """Decide whether a new key is needed, after the loss was counted.

    Returns:
        What to remember, the problem that prevents the creation of a key, and the change that creates a key.
    """
    heal = state.heal
    is_due = _is_renewal_due(heal, now)
    if is_due:
        heal = replace(heal, not_before_s=now.monotonic_s + add_jitter(_FIRST_PAUSE_S, now.jitter))
    if isinstance(key_check, KeyFileError):
        return heal, str(key_check), None
    metadata, key = key_check.metadata, key_check.key
    if metadata.pre_auth_key_id is None:
        if not config.self_heal or heal.reported_no_metadata:
            return heal, None, None
        problem = (
            "SELF_HEAL needs the key metadata, which does not exist. Mount the volume of the key file "
            f"({config.key_path}) in this container, too."
        )
        return replace(heal, reported_no_metadata=True), problem, None
    is_usable = key is not None and key.is_usable(now.utc)
    heal = replace(heal, key=key if is_usable and key_check.is_in_file else None)
    # If Headscale does not have the key of a stranded pod, the pod may be registered at another Headscale server, for
    # which a new key of this server is not valid.
    is_elsewhere = loss.kind is LossKind.STRANDED and key is None
    if heal.key is not None or not is_due or not config.self_heal or is_elsewhere:
        return heal, None, None
    # Count the attempt now, so that the interval also grows if the creation of the key fails.
    attempts = heal.attempts + 1
    pause_s = doubled(_FIRST_PAUSE_S, attempts, max_s=_MAX_PAUSE_S)
    heal = replace(heal, attempts=attempts, not_before_s=now.monotonic_s + add_jitter(pause_s, now.jitter))
    change = WriteFreshKey(
        spec=config.key_spec(user),
        reason=f"the node is {loss.kind}",
        # An expired node keeps its id and machine key when it registers again.
        node_id=loss.node.id if loss.node else metadata.node_id,
        machine_key=loss.node.machine_key if loss.node else metadata.machine_key,
        # Expire a usable key that is in no file. It is from a process that was killed after it had written the metadata
        # and before it wrote the key.
        replaces=key if is_usable else None,
    )
    return heal, None, change


def is_confirmed(heal: HealState, now: Moment) -> bool:
    """Return True if the observed loss was observed often and long enough."""
    if heal.observed is None or heal.observations < CONFIRMING_OBSERVATIONS:
        return False
    confirming_s = EMPTY_LIST_CONFIRMING_S if heal.observed.is_list_empty else CONFIRMING_S
    return now.monotonic_s - heal.observed_since_s >= confirming_s


def _is_renewal_due(heal: HealState, now: Moment) -> bool:
    return is_confirmed(heal, now) and now.monotonic_s >= heal.not_before_s
