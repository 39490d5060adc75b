"""The changes that this program can make. Each change has a reason, which is logged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from lifecycle.domain.model import KeyMetadata, KeySpec, Node, PreAuthKey, Record, RecordSpec


@dataclass(frozen=True, slots=True)
class DeleteNode:
    """Delete a node whose pod no longer exists."""

    node: Node
    reason: str


@dataclass(frozen=True, slots=True)
class CreateRecord:
    """Create a missing record."""

    spec: RecordSpec
    reason: str


@dataclass(frozen=True, slots=True)
class UpdateRecord:
    """Change those fields of a record that differ from its specification."""

    record: Record
    spec: RecordSpec
    reason: str


@dataclass(frozen=True, slots=True)
class DeleteRecord:
    """Delete a record that this program owns, and that is stale or redundant."""

    record: Record
    reason: str


@dataclass(frozen=True, slots=True)
class WriteFreshKey:
    """Create a pre-auth key, and replace the key file and the key metadata.

    Attributes:
        node_id: for the metadata: the id of this pod's last known node; None if there is none.
        machine_key: for the metadata: the machine key of this node.
        replaces: an unused older key to expire first. If this fails, the new key is created anyway.
    """

    spec: KeySpec
    reason: str
    node_id: str | None = None
    machine_key: str | None = None
    replaces: PreAuthKey | None = None


@dataclass(frozen=True, slots=True)
class WriteKeyMetadata:
    """Replace the key metadata. The key file stays as it is."""

    metadata: KeyMetadata
    reason: str


RecordChange: TypeAlias = CreateRecord | UpdateRecord | DeleteRecord
Change: TypeAlias = DeleteNode | WriteFreshKey | WriteKeyMetadata | RecordChange


def name_of(change: RecordChange) -> str:
    """Return the full name of the record that is changed."""
    return change.record.name if isinstance(change, DeleteRecord) else change.spec.name
