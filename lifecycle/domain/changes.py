"""Every change that this program can make, each with its reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from lifecycle.domain.model import Node, Record, RecordSpec


@dataclass(frozen=True, slots=True)
class DeleteNode:
    """Delete a node that an earlier pod left behind."""

    node: Node
    reason: str


@dataclass(frozen=True, slots=True)
class CreateRecord:
    """Create a record that is missing."""

    spec: RecordSpec
    reason: str


@dataclass(frozen=True, slots=True)
class UpdateRecord:
    """Change in place the fields of a record that differ."""

    record: Record
    spec: RecordSpec
    reason: str


@dataclass(frozen=True, slots=True)
class DeleteRecord:
    """Delete a record of ours that is stale or redundant."""

    record: Record
    reason: str


RecordChange: TypeAlias = CreateRecord | UpdateRecord | DeleteRecord
