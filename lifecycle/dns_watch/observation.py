"""What one pass of dns-watch reads, as frozen values."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import TypeAlias

from lifecycle.domain.errors import ApiError, LifecycleError
from lifecycle.domain.model import IpAddress, KeyMetadata, Node, PreAuthKey, Record
from lifecycle.domain.ownership import NodeIdentity

Interface: TypeAlias = tuple[IpAddress, ...] | None
"""The VPN addresses of this pod's interface, sorted; None if there is no such interface."""


class Missing(StrEnum):
    """Why a complete answer of Headscale contains no node of this pod."""

    GONE = "gone"
    """Headscale reports the node as not found, and its list contains other nodes."""
    EXPIRED = "expired"
    """The node exists and has to log in again."""
    STRANDED = "stranded"
    """This pod's interface has a VPN address that no node has, and no other node has its name."""
    UNREGISTERED = "unregistered"
    """No node of this pod has been seen, and no other node has its name."""


@dataclass(frozen=True, slots=True)
class Loss:
    """A node of ours that was not found.

    Attributes:
        node_id: the node; None if it is not known.
    """

    kind: Missing
    node_id: str | None = None


@dataclass(frozen=True, slots=True)
class Unidentified:
    """This pod's node cannot be determined; nothing is changed."""

    reason: str


@dataclass(frozen=True, slots=True)
class Registered:
    """This pod's node was found.

    Attributes:
        from_list: it was selected from the list of all nodes, not read by its id.
    """

    node: Node
    from_list: bool


@dataclass(frozen=True, slots=True)
class Unregistered:
    """This pod's node was not found.

    Attributes:
        reason: for people.
        loss: why it is missing; None if that is uncertain.
        successor: the latest node of a later pod, if our node is gone or expired.
        error: the configuration or file problem that prevents identification.
    """

    reason: str
    loss: Loss | None = None
    successor: Node | None = None
    error: LifecycleError | None = None


@dataclass(frozen=True, slots=True)
class Failed:
    """A read failed; nothing follows from it."""

    error: ApiError


@dataclass(frozen=True, slots=True)
class KeyCheck:
    """The key in the key file, as Headscale lists it.

    Attributes:
        key: the listed key that the metadata names; None if there is none.
        is_in_file: the key file contains the key that the metadata describes.
        error: the metadata or the key file could not be read.
    """

    key: PreAuthKey | None = None
    is_in_file: bool = False
    error: LifecycleError | None = None


@dataclass(frozen=True, slots=True)
class ApiKeyRead:
    """The API key in use.

    Attributes:
        expires_at: None = never, or it cannot be determined.
    """

    expires_at: datetime | None


@dataclass(frozen=True, slots=True)
class RecordsRead:
    """Everything at our name.

    Attributes:
        apex: the zone's own name; None if it is not known.
        successors: nodes of later pods; empty if no record made it necessary to check.
    """

    records: tuple[Record, ...]
    apex: str | None = None
    successors: tuple[Node, ...] = ()


@dataclass(frozen=True, slots=True)
class Observation:
    """Everything that one pass read.

    Attributes:
        interface: see `Interface`.
        node: the result of the lookup.
        identity: criteria for owning a node; None if the users were not read or none of them is ours.
        metadata: the key metadata; None if there is none or it was not needed.
        key: the key in the file; None if it was not due to be checked.
        records: the records at our name; None if they were not due to be read.
        version: Headscale's version; "" if it could not be read.
        api_key: the expiry of the API key in use; None if it was not due to be read.
    """

    interface: Interface
    node: Registered | Unregistered | Failed
    identity: NodeIdentity | None = None
    metadata: KeyMetadata | None = None
    key: KeyCheck | Failed | None = None
    records: RecordsRead | Failed | None = None
    version: str = ""
    api_key: ApiKeyRead | Failed | None = None
