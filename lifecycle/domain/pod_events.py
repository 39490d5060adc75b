"""Derive Kubernetes Events about this pod from log events."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal

from lifecycle.domain.events import Event
from lifecycle.domain.text import printable, timestamp

# Source: Kubernetes, validation of events.k8s.io/v1: the note of an Event has at most 1,024 bytes.
_MAX_NOTE_BYTES: Final = 1024

NOTES: Final = {
    "record.created": ("RecordCreated", "The record {type} {record} -> {content} was created ({reason})"),
    "record.updated": ("RecordUpdated", "The record {type} {record} was updated from {was} to {content} ({reason})"),
    "record.foreign": (
        "RecordForeign",
        "A {type} record that tailscale-lifecycle does not own exists at {record} ({content}). {advice}",
    ),
    "node.lost": ("NodeLost", "Node {node_id} is lost: {reason}. {advice}"),
    "node.returned": ("NodeReturned", "The node is registered again after it was {after}"),
    "node.superseded": ("NodeSuperseded", "Another pod has the hostname now, with node {superseded_by}: {reason}"),
    "node.expiring": ("NodeExpiring", "Node {node_id} expires at {expires_at}. {advice}"),
    "node.foreign": (
        "NodeForeign",
        "tailscale-lifecycle does not own node {node_id}, which has the hostname {hostname}: {advice}",
    ),
    "api_key.expiring": ("APIKeyExpiring", "The API key of Headscale expires at {expires_at}. {advice}"),
}
"""Maps the name of a log event to the reason of the Kubernetes Event, and to a template of the Event's note.

The placeholders of the template are fields of the log event. In `node.returned`, `after` is the cause of the loss,
such as "gone" or "expired".
"""


@dataclass(frozen=True, slots=True)
class PodEvent:
    """A Kubernetes Event, as `kubectl describe pod` shows it."""

    type: Literal["Normal", "Warning"]
    reason: str
    note: str


def pod_event(event: Event) -> PodEvent | None:
    """Return the Kubernetes Event for a log event; None if this log event has none."""
    if event.name not in NOTES:
        return None
    reason, note = NOTES[event.name]
    fields = {key: timestamp(value) if isinstance(value, datetime) else value for key, value in event.fields.items()}
    text = printable(note.format_map(fields)).encode()[:_MAX_NOTE_BYTES].decode(errors="ignore")
    return PodEvent("Normal" if event.level == "info" else "Warning", reason, text)
