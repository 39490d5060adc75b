"""Find this pod's node: by id where it is known, else from the whole list."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime

import structlog

from lifecycle.clients.headscale.client import Headscale
from lifecycle.dns_watch.plan import Hints, Missing, NoAnswer, choose_node, successors, why_missing
from lifecycle.errors import KeyFileError, NotFoundError, UserError
from lifecycle.keyfile import KeyFile
from lifecycle.model import IpAddress, Node
from lifecycle.ownership import NodeIdentity, choose_user
from lifecycle.settings import DnsWatchSettings

log = structlog.get_logger()


class NodeFinder:
    """Knows where our node was found last, for a look by id is cheap and a list is not.

    Attributes:
        node_id: where it was found last; None until then.
        identity: by what it was ours; None until Headscale told its users.
        missing: what the last look without a node says; None when it said nothing for sure.
        successor: the latest node of a later pod, where our node is gone; None when there is none.
    """

    def __init__(
        self, settings: DnsWatchSettings, *, headscale: Headscale, key_file: KeyFile, now: Callable[[], datetime]
    ) -> None:
        self._settings = settings
        self._headscale = headscale
        self._key_file = key_file
        self._now = now
        self._assumed_user: str | None = None
        self.node_id: str | None = None
        self.identity: NodeIdentity | None = None
        self.missing: Missing | None = None
        self.successor: Node | None = None

    def find(self, interface: tuple[IpAddress, ...] | None, *, waited: bool) -> Node | NoAnswer:
        """Read this pod's node.

        Args:
            interface: the VPN addresses of this pod's interface; None when there is no such interface.
            waited: no interface has shown up for so long that none will.

        Raises:
            ApiError: Headscale could not be read.
        """
        self.missing = None
        self.successor = None
        known, gone = self._known_node()
        if known is not None and self._still_ours(known, interface):
            return known
        try:
            identity = self._read_identity()
            note = self._key_file.read_note()
        except (UserError, KeyFileError) as error:
            return NoAnswer(str(error))
        nodes = self._headscale.nodes()
        hints = Hints(
            interface=interface,
            pre_auth_key_id=note.pre_auth_key_id if note else None,
            kept_node_id=note.kept_node_id if note else None,
            waited=waited,
        )
        found = choose_node(nodes, identity=identity, hints=hints, now=self._now())
        if isinstance(found, Node):
            self.node_id = found.id
            return found
        self.missing = why_missing(
            nodes, identity=identity, hints=hints, now=self._now(), gone_id=self.node_id if gone else None
        )
        if self.missing is Missing.GONE:
            later = self._later_than(self.node_id, nodes, identity)
            self.successor = later[-1] if later else None
        return found

    def successors(self, node: Node) -> list[Node]:
        """Nodes of later pods of this service, from a fresh list; ascending order of id.

        Raises:
            ApiError: Headscale could not be read.
        """
        return self._later_than(node.id, self._headscale.nodes(), self.identity)

    def _known_node(self) -> tuple[Node | None, bool]:
        """The node as it is now, and whether Headscale itself says that it is gone."""
        if self.node_id is None or self.identity is None:
            return None, False
        try:
            return self._headscale.node(self.node_id), False
        except NotFoundError:
            return None, True

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
