"""The meaning of every log event, for docs/reference.md. Tests compare the names, levels and keys with the program."""

from __future__ import annotations

from dataclasses import dataclass

from lifecycle.domain.events import Level


@dataclass(frozen=True, slots=True)
class Documented:
    """A log event as the reference page describes it.

    Attributes:
        levels: the levels at which the event is logged.
        keys: the keys that the event can have, besides `timestamp`, `level` and `event`.
        meaning: what happened, or when the event is logged.
    """

    levels: tuple[Level, ...]
    keys: tuple[str, ...]
    meaning: str


def _event(levels: str, keys: str, meaning: str) -> Documented:
    return Documented(tuple(levels.split()), tuple(keys.split()), meaning)  # type: ignore[arg-type]  # a test checks the levels


EVENTS = {
    # Start and end
    "settings.loaded": _event(
        "info",
        "version",
        "the settings were loaded; the event also has a key for each setting that differs from its default",
    ),
    "settings.near_miss": _event(
        "warning", "variable similar_to", "a variable has a name similar to a setting, and is ignored"
    ),
    "settings.service_link_ignored": _event(
        "warning", "variable advice", "a variable was set by Kubernetes for a Service and is not a setting"
    ),
    "settings.invalid": _event("error", "error", "a setting is invalid; one event per problem, then exit status 2"),
    "manifest.refused": _event(
        "error", "error", "`inject` cannot add the containers; one event per problem, then exit status 2"
    ),
    "stop.requested": _event("info", "signal", "SIGTERM or SIGINT was received"),
    "command.failed": _event("error", "error error_type", "the command failed; exit status 1"),
    "command.crashed": _event(
        "error",
        "error_type",
        "the command failed because of a bug; the key `exception` has the traceback; exit status 1",
    ),
    # Requests
    "retry.scheduled": _event(
        "warning", "attempt wait_s error", "`cleanup` or `prune --yes` retries a request to Headscale or Kubernetes"
    ),
    "request.delayed": _event(
        "info", "wait_s reason", "`cleanup` or `prune --yes` pauses, because an upstream took long to respond"
    ),
    "user.assumed": _event("warning", "user reason", "`HEADSCALE_USER` is not set, and Headscale has only one user"),
    "headscale.untested": _event(
        "warning",
        "version newest_tested advice",
        "Headscale is newer than the releases that this program was tested with; logged once for each version",
    ),
    "api_key.expiring": _event(
        "warning",
        "expires_at days_left advice",
        "the API key of Headscale expires in less than 14 days; logged once a day",
    ),
    "api_key.unreadable": _event(
        "debug", "error", "the expiration of the API key could not be read; this has no other effect"
    ),
    "kubernetes_event.failed": _event(
        "warning",
        "reason error",
        "an Event of the pod could not be written; logged once until an Event is written; this has no other effect",
    ),
    # Nodes
    "node.registered": _event(
        "info", "node_id hostname addresses", "the pod's node was found, or the pod has a different node now"
    ),
    "node.identification_failed": _event(
        "error",
        "error error_type",
        "a setting or a file prevents `dns-watch` from finding the pod's node; logged once per problem",
    ),
    "node.lost": _event(
        "error",
        "node_id reason advice",
        "the pod's node was deleted or has expired, or no node has the pod's address; this was confirmed by 3 polls",
    ),
    "node.returned": _event("info", "after", "the pod has a node again; `after` is the cause of the last `node.lost`"),
    "node.superseded": _event(
        "warning",
        "node_id superseded_by reason",
        "another pod of the workload owns the name; this pod no longer changes the record",
    ),
    "node.reinstated": _event(
        "info", "node_id", "the pod that `node.superseded` reported no longer owns the name, so this pod owns it again"
    ),
    "node.expiring": _event(
        "warning",
        "node_id expires_at days_left advice",
        "the pod's node expires in less than 14 days and must log in again; logged once a day",
    ),
    "node.foreign": _event(
        "warning",
        "node_id hostname user tags registered_by advice",
        "a node with the workload's hostname is not owned, so it is not changed",
    ),
    "node.online": _event(
        "warning", "node_id hostname reason", "a node that is about to be deleted is online according to Headscale"
    ),
    "node.kept": _event("info", "node_id hostname reason", "`NODE_POLICY=keep`: the node in the state Secret is kept"),
    "node.not_kept": _event("warning", "secret reason advice", "`NODE_POLICY=keep`: no node can be kept"),
    "node.deleted": _event("info", "node_id hostname reason", "a node was deleted"),
    # Pre-auth keys
    "pre_auth_key.created": _event("info", "key_id user expires_at reason", "a key was created"),
    "pre_auth_key.expired": _event("info", "key_id reason", "an unused key was expired in Headscale"),
    "pre_auth_key.create_unconfirmed": _event(
        "warning",
        "user expires_at",
        "the response to the creation of a key was lost; if the key was created, it exists until it expires",
    ),
    "pre_auth_key.expire_failed": _event(
        "warning", "key_id expires_at error", "an unused key could not be expired; it expires at `expires_at`"
    ),
    "key_file.written": _event("info", "path key_id", "the key file was replaced"),
    "key_file.unwritable": _event(
        "error", "error", "`dns-watch` could not read or replace the key file or the key metadata"
    ),
    "restart.marker_failed": _event("debug", "error", "the restart marker could not be written or removed"),
    "restart.requested": _event(
        "info",
        "path key_id",
        "the restart marker was written, so the liveness probe fails and the kubelet restarts the tailscale container",
    ),
    "restart.withdrawn": _event(
        "info", "path key_id", "the restart marker was removed, because a restart no longer helps"
    ),
    "key_metadata.written": _event(
        "debug", "node_id reason", "the key metadata, the file beside the key file, was replaced"
    ),
    # Records
    "record.created": _event("info", "record type content reason", "a record was created"),
    "record.updated": _event(
        "info", "record type content was reason", "a record was changed; `was` is its former content"
    ),
    "record.deleted": _event("info", "record type was reason", "a record was deleted"),
    "record.gone": _event("info", "record type was", "a record that should be deleted no longer existed"),
    "record.delete_failed": _event("warning", "error reason", "`cleanup` could not delete a stale record"),
    "record.foreign": _event(
        "error",
        "record type content comment advice",
        "a record that is not owned has a name of the workload; no record at this name is changed",
    ),
    "address.unpublishable": _event(
        "error",
        "node_id addresses reason",
        "`VPN_PREFIXES` and `DNS_IPV6` allow none of the node's addresses in a record, or the VPN interface has none",
    ),
    "zone.unreadable": _event("warning", "error", "`cleanup` could not read the zone; no record is changed"),
    # Passes
    "plan.made": _event(
        "info",
        "headscale nodes deletions",
        "`cleanup` has decided what to delete; `headscale` is the version of Headscale",
    ),
    "pass.finished": _event(
        "info",
        "nodes_deleted records_deleted key_id duration_s node_id content changes in_sync workloads",
        "`cleanup` or `prune --yes` is done, or `dns-watch` has polled successfully; the keys depend on the command",
    ),
    "pass.skipped": _event("warning", "reason lookups", "the node was not found in `lookups` lookups in a row"),
    "pass.failed": _event(
        "warning error",
        "upstream error error_type failures_in_a_row wait_s",
        "Headscale, Cloudflare or Kubernetes failed and is retried; level `error` if it refused the credentials",
    ),
    "poll.slowed": _event(
        "info", "interval_s reason", "with `HEADSCALE_ACCESS=exec`, the poll interval is at least a minute"
    ),
    "health_port.unavailable": _event(
        "error", "address port error advice", "the health port is in use; `dns-watch` continues without it"
    ),
    # Prune
    "prune.waiting": _event(
        "info", "workloads wait_s", "`prune` reads everything again after `wait_s`, before it removes anything"
    ),
    "prune.skipped": _event("warning", "reason", "no node is online, so `prune` removes nothing"),
    "workload.skipped": _event(
        "info warning",
        "workload reason",
        "a workload's nodes and records stay, because they have changed since `prune` listed them",
    ),
}
