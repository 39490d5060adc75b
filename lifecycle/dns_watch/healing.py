"""Pure functions that decide when this pod's node is lost, and when a fresh pre-auth key is needed to register again.

A fresh key is a key that no node has used yet. When the tailscale container is restarted, it registers with this key.
"""

from __future__ import annotations

from dataclasses import replace

from lifecycle.dns_watch.state import HealState, KeyCheck, Loss, LossCount, LossKind, Moment, State, WatchConfig
from lifecycle.domain.backoff import add_jitter, doubled
from lifecycle.domain.changes import WriteFreshKey
from lifecycle.domain.events import Event, error
from lifecycle.domain.model import KeyMetadata, PreAuthKey, User

# A loss is confirmed after this many observations over this many seconds. While Headscale restarts, or if its list is
# incomplete, a node can seem to be gone for a few seconds.
CONFIRMING_OBSERVATIONS = 3
CONFIRMING_S = 60.0

# If Headscale lists no nodes at all, a loss is confirmed only after this many seconds, because Headscale may use an
# empty database while its database is restored.
EMPTY_LIST_CONFIRMING_S = 300.0

# The first and the longest interval between checks whether a fresh key is needed. The interval doubles with each fresh
# key.
_FIRST_PAUSE_S = 60.0
_MAX_PAUSE_S = 3600.0

_LOSS_REASONS = {
    LossKind.GONE: "Headscale reports that the node does not exist",
    LossKind.EXPIRED: "the node has expired and has to log in again",
    LossKind.STRANDED: "this pod has a VPN address that no node in Headscale has",
}


def without_loss_count(heal: HealState) -> HealState:
    """Reset the count of consecutive observations of a loss, because the last lookup did not show the loss."""
    return replace(heal, loss_count=None)


def count_loss(heal: HealState, loss: Loss, *, is_superseded: bool, now: Moment) -> HealState:
    """Count an observation of a loss, and confirm the loss after enough observations over enough time."""
    evidence = (loss.kind, is_superseded, loss.is_list_empty)
    count = heal.loss_count
    if count is None or (count.kind, count.is_superseded, count.is_list_empty) != evidence:
        count = LossCount(*evidence, observations=0, since_s=now.monotonic_s)
    heal = replace(heal, loss_count=replace(count, observations=count.observations + 1))
    confirmed = _is_confirmed(heal, now)
    # A later pod supersedes this pod immediately. If the later pod is gone, that counts only after it was confirmed, as
    # with a loss.
    if is_superseded or confirmed:
        heal = replace(heal, is_superseded=is_superseded)
    if confirmed and loss.kind is not LossKind.UNREGISTERED:
        heal = replace(heal, lost=loss.kind)
    return heal


def loss_events(heal: HealState, loss: Loss, *, reported: LossKind | None, config: WatchConfig) -> tuple[Event, ...]:
    """Report a confirmed loss, unless this kind of loss was reported before."""
    if heal.lost in (None, reported):
        return ()
    advice = "Restart the pod." if config.self_heal else "Restart the pod, or set SELF_HEAL=true."
    return (error("node.lost", node_id=loss.node_id, reason=_LOSS_REASONS[heal.lost], advice=advice),)


def is_key_check_due(heal: HealState, state: State, now: Moment) -> bool:
    """Return True if the key in the key file has to be compared with Headscale's list of keys.

    While a restart helps, the key is checked in each pass, because a restart no longer helps once a node has used
    the key.
    """
    if heal.loss_count is None or heal.loss_count.is_superseded:
        return False
    return _is_renewal_due(heal, now) or restart_helps(heal, state, now)


def restart_helps(heal: HealState, state: State, now: Moment) -> bool:
    """Return True if a restart of the tailscale container brings the node back.

    The loss has to be confirmed and current, no later pod may have the name, and a fresh key has to be in the key file.
    If the VPN interface changed within the last minute, a restart may be in progress, and another one does not help. A
    restart never helps after LossKind.STRANDED: the node's id is unknown, so Headscale cannot confirm that it is gone.
    """
    return (
        heal.loss_count is not None
        and heal.lost in (LossKind.GONE, LossKind.EXPIRED)
        and not heal.is_superseded
        and heal.key is not None
        and heal.key.is_usable(now.utc)
        and now.monotonic_s - state.interface_changed_s >= CONFIRMING_S
    )


def fresh_key_id(state: State, now: Moment) -> str | None:
    """Return the id of the fresh key with which a restart helps; None if a restart does not help."""
    key = state.heal.key
    return key.id if key is not None and restart_helps(state.heal, state, now) else None


def heal_loss(
    heal: HealState,
    loss: Loss,
    *,
    state: State,
    user: User,
    metadata: KeyMetadata | None,
    key_check: KeyCheck | None,
    config: WatchConfig,
    now: Moment,
) -> tuple[HealState, tuple[Event, ...], WriteFreshKey | None]:
    """Decide whether a fresh key is needed.

    Args:
        heal: the result of `count_loss`.
        state: what was remembered before this pass.
        key_check: the result of comparing the key in the key file with Headscale's list; None if no check was due.

    Returns:
        What to remember, what to log, and the key to create, which is None if no key is needed or due.
    """
    if key_check is None:
        return heal, (), None
    is_due = _is_renewal_due(heal, now)
    if is_due:
        heal = replace(heal, not_before_s=now.monotonic_s + add_jitter(_FIRST_PAUSE_S, now.jitter))
    if key_check.error is not None:
        return heal, (error("key_file.unwritable", error=str(key_check.error)),), None
    if metadata is None or metadata.pre_auth_key_id is None:
        if config.self_heal and not heal.reported_no_metadata:
            problem = (
                "SELF_HEAL needs the key metadata, which does not exist. Mount the volume of the key file "
                f"({config.key_path}) in this container, too."
            )
            return replace(heal, reported_no_metadata=True), (error("key_file.unwritable", error=problem),), None
        return heal, (), None
    key = key_check.key
    is_usable = key is not None and key.is_usable(now.utc)
    if is_usable and key_check.is_in_file:
        # Tailscale has a VPN address, but has not used this key. It may be registered at another Headscale server,
        # where the key is not valid.
        may_use_other_server = loss.kind is LossKind.STRANDED and heal.key is None
        return replace(heal, key=None if may_use_other_server else key), (), None
    heal = replace(heal, key=None)
    if not is_due or not config.self_heal or (loss.kind is LossKind.STRANDED and key is None):
        return heal, (), None
    # Count the attempt now, so that the interval also grows if the creation of the key fails.
    attempts = heal.attempts + 1
    pause_s = doubled(_FIRST_PAUSE_S, attempts, max_s=_MAX_PAUSE_S)
    heal = replace(heal, attempts=attempts, not_before_s=now.monotonic_s + add_jitter(pause_s, now.jitter))
    known = state.node if state.node is not None and state.node.id == loss.node_id else None
    change = WriteFreshKey(
        spec=config.key_spec(user),
        reason=f"the node is {loss.kind}",
        # An expired node keeps its id and machine key when it registers again.
        kept_node_id=loss.node_id or metadata.kept_node_id,
        kept_machine_key=known.machine_key if known else metadata.kept_machine_key,
        # If a process was killed after it had written the metadata and before it wrote the key, a usable key exists
        # that is in no file.
        replaces=key if is_usable else None,
    )
    return heal, (), change


def with_key(heal: HealState, key: PreAuthKey, *, key_check: KeyCheck | None) -> HealState:
    """Remember the key that was created, if the node can register again with it."""
    was_registered = heal.lost is not LossKind.STRANDED or (
        key_check is not None and key_check.key is not None and key_check.key.used
    )
    return replace(heal, key=key if was_registered else None)


def _is_confirmed(heal: HealState, now: Moment) -> bool:
    count = heal.loss_count
    if count is None or count.observations < CONFIRMING_OBSERVATIONS:
        return False
    return now.monotonic_s - count.since_s >= (EMPTY_LIST_CONFIRMING_S if count.is_list_empty else CONFIRMING_S)


def _is_renewal_due(heal: HealState, now: Moment) -> bool:
    return _is_confirmed(heal, now) and now.monotonic_s >= heal.not_before_s
