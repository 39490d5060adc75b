"""Find this pod's node: by id where it is known, else from the whole list."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime

import structlog

from lifecycle.clients.headscale.dialect import UPSTREAM
from lifecycle.clients.headscale.reader import HeadscaleReader
from lifecycle.dns_watch.plan import (
    Hints,
    Loss,
    Missing,
    Unidentified,
    choose_node,
    successors,
    why_missing,
    without_successor,
)
from lifecycle.domain.errors import KeyFileError, LifecycleError, NotFoundError, TransientError, UserError
from lifecycle.domain.model import IpAddress, KeyMetadata, Node
from lifecycle.domain.ownership import NodeIdentity, choose_user
from lifecycle.keyfile.writer import KeyFileWriter
from lifecycle.settings.models import DnsWatchSettings

log = structlog.get_logger()


class NodeFinder:
    """Knows where our node was found last, for a look by id is cheap and a list is not.

    Attributes:
        node_id: where it was found last; None until then.
        identity: by what it was ours; None until Headscale told its users.
        loss: what the last look without a node says; None when it said nothing for sure.
        successor: the latest node of a later pod, where our node is gone or expired; None when there is none.
    """

    def __init__(
        self,
        settings: DnsWatchSettings,
        *,
        headscale: HeadscaleReader,
        key_file: KeyFileWriter,
        now: Callable[[], datetime],
    ) -> None:
        self._settings = settings
        self._headscale = headscale
        self._key_file = key_file
        self._now = now
        self._assumed_user: str | None = None
        self._complained_of = ""
        self.node_id: str | None = None
        self.identity: NodeIdentity | None = None
        self.loss: Loss | None = None
        self.successor: Node | None = None

    def find(self, interface: tuple[IpAddress, ...] | None, *, waited: bool) -> Node | Unidentified:
        """Read this pod's node.

        Args:
            interface: the VPN addresses of this pod's interface; None when there is no such interface.
            waited: no interface has shown up for so long that none will.

        Raises:
            ApiError: Headscale could not be read.
        """
        self.loss = None
        self.successor = None
        known, not_found = self._known_node()
        if known is not None and self._still_ours(known, interface):
            return known
        try:
            identity = self._read_identity()
            note = self._read_note(interface)
        except (UserError, KeyFileError) as error:
            self._complain(error)
            return Unidentified(str(error))
        self._complained_of = ""
        nodes = self._headscale.nodes()
        hints = Hints(interface, note.pre_auth_key_id, note.kept_node_id, waited=waited)
        found = choose_node(nodes, identity=identity, hints=hints, now=self._now())
        if isinstance(found, Node) and self.node_id is not None and not hints.distinctive:
            found = without_successor(found, node_id=self.node_id)
        if isinstance(found, Node):
            self.node_id = found.id
            self._remember(found, note)
            return found
        own_id = self.node_id or note.kept_node_id
        if self.node_id is None and own_id is not None and all(node.id != own_id for node in nodes):
            # Only what Headscale says of this one node is its word that it is gone.
            not_found = self._is_not_found(own_id)
        self.loss = why_missing(
            nodes, identity=identity, hints=hints, now=self._now(), own_id=own_id, not_found=not_found
        )
        if self.loss is not None and self.loss.kind in (Missing.GONE, Missing.EXPIRED):
            # A node that came in with this pod's own key is this pod's: its address has yet to show up here.
            later = [
                node for node in self._later_than(self.loss.node_id, nodes, identity) if not hints.metadata_names(node)
            ]
            self.successor = later[-1] if later else None
        return found

    def successors(self, node: Node) -> list[Node]:
        """Nodes of later pods of this service, from a fresh list; ascending order of id.

        Args:
            node: this pod's, which Headscale has just shown.

        Raises:
            ApiError: Headscale could not be read, or its list is short.
        """
        nodes = self._headscale.nodes()
        if all(listed.id != node.id for listed in nodes):
            # As an empty one is: that no successor is on it says nothing.
            raise TransientError(f"Headscale lists no node {node.id}, which it has just shown", upstream=UPSTREAM)
        return self._later_than(node.id, nodes, self.identity)

    def _read_note(self, interface: tuple[IpAddress, ...] | None) -> KeyMetadata:
        try:
            return self._key_file.read_metadata() or KeyMetadata(None)
        except KeyFileError:
            # Where there is an interface, it alone tells which node is ours.
            if interface is None:
                raise
            return KeyMetadata(None)

    def _remember(self, node: Node, note: KeyMetadata) -> None:
        """Note for whoever watches after us which node it was: of that one, Headscale can say that it is gone."""
        if note.pre_auth_key_id is not None and note.kept_node_id != node.id:
            # A volume that is not writable here: as before there was a note.
            with suppress(KeyFileError):
                self._key_file.write_metadata(replace(note, kept_node_id=node.id))

    def _complain(self, error: LifecycleError) -> None:
        """Say once what keeps our node from being known."""
        if str(error) != self._complained_of:
            self._complained_of = str(error)
            log.error("node.identification_failed", error=str(error), error_type=type(error).__name__)

    def _known_node(self) -> tuple[Node | None, bool]:
        """The node as it is now, and whether Headscale itself says that there is none."""
        if self.node_id is None or self.identity is None:
            return None, False
        try:
            return self._headscale.node(self.node_id), False
        except NotFoundError:
            return None, True

    def _is_not_found(self, node_id: str) -> bool:
        try:
            self._headscale.node(node_id)
        except NotFoundError:
            return True
        return False

    def _still_ours(self, node: Node, interface: tuple[IpAddress, ...] | None) -> bool:
        moved = bool(interface) and not set(node.addresses) & set(interface or ())
        owned = self.identity is not None and self.identity.owns_node(node)
        return owned and not moved and not node.expired(self._now())

    def _read_identity(self) -> NodeIdentity:
        user = choose_user(self._headscale.users(), self._settings.headscale_user)
        if self._settings.headscale_user is None and self._assumed_user != user.name:
            self._assumed_user = user.name
            log.warning("user.assumed", user=user.name, reason="it is the only one; set HEADSCALE_USER")
        self.identity = NodeIdentity(self._settings.node_hostname, user, self._settings.authkey_tags)
        return self.identity

    def _later_than(self, node_id: str | None, nodes: Sequence[Node], identity: NodeIdentity | None) -> list[Node]:
        if node_id is None or identity is None:
            return []
        return successors(nodes, node_id=node_id, identity=identity, now=self._now())
