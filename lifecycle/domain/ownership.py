"""What is ours: the one page that says which nodes and records we may touch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from typing import TypeAlias

from lifecycle.domain.errors import UserError
from lifecycle.domain.model import IpAddress, Node, Record, RegisterMethod, User

IpNetwork: TypeAlias = IPv4Network | IPv6Network

ADDRESS_TYPES = frozenset({"A", "AAAA"})

# Every mark of this program, whoever the owner is, begins like this.
_MARK_FAMILY = "tailscale-lifecycle/"


def mark_of(owner: str) -> str:
    """The comment by which one owner's records are known; ASCII, compared exactly."""
    return f"{_MARK_FAMILY}1 {owner}"


def choose_user(users: Iterable[User], name: str | None) -> User:
    """The Headscale user that owns our keys and nodes.

    Args:
        users: every user, in any order.
        name: the one that was set; None = the only one there is.

    Raises:
        UserError: there is not exactly one such user; the message lists those that are.
    """
    everyone = sorted(users, key=lambda user: user.name)
    names = ", ".join(user.name for user in everyone)
    if not everyone:
        raise UserError(f"Headscale has no user; make one with `headscale users create {name or 'services'}`")
    if name is None:
        if len(everyone) > 1:
            raise UserError(f"Headscale has several users ({names}); set HEADSCALE_USER to the one that owns the node")
        return everyone[0]
    matching = [user for user in everyone if user.name == name]
    match matching:
        case [user]:
            return user
        case []:
            raise UserError(f"Headscale has no user called {name}; set HEADSCALE_USER to one of: {names}")
    raise UserError(f"Headscale has {len(matching)} users called {name}; rename one of them")


@dataclass(frozen=True, slots=True)
class NodeIdentity:
    """By what a node is ours: hostname, user, and tags where no user is named.

    Attributes:
        hostname: what our pod asks to be called.
        user: the Headscale user that owns our keys and nodes.
        tags: what our keys give to nodes; may be empty.
    """

    hostname: str
    user: User
    tags: frozenset[str] = frozenset()

    def bears_our_name(self, node: Node) -> bool:
        """Whether the node's hostname is ours, the whole of it, whatever the case."""
        return node.hostname.casefold() == self.hostname.casefold()

    def owns_node(self, node: Node) -> bool:
        """Whether we may touch the node; a doubt is a no."""
        return self.bears_our_name(node) and node.registered_by is RegisterMethod.AUTH_KEY and self._is_our_users(node)

    def _is_our_users(self, node: Node) -> bool:
        if node.owner is not None:
            return node.owner.is_same(self.user)
        return bool(node.tags & self.tags)


def is_marked(record: Record, mark: str) -> bool:
    """Whether the record says itself, to the letter, that it is the mark's owner's."""
    return record.type in ADDRESS_TYPES and record.comment == mark


@dataclass(frozen=True, slots=True)
class RecordIdentity:
    """By what a record is ours: the exact name, and our mark or a VPN address nobody marked.

    Attributes:
        name: the full name, lower case, no trailing dot.
        mark: the comment that makes a record ours.
        vpn_prefixes: what counts as a VPN address.
    """

    name: str
    mark: str
    vpn_prefixes: tuple[IpNetwork, ...]

    def owns_record(self, record: Record) -> bool:
        """Whether we may touch the record; a doubt is a no."""
        if record.name != self.name or record.type not in ADDRESS_TYPES:
            return False
        if record.comment:
            return record.comment == self.mark
        return record.address is not None and self.is_vpn_address(record.address)

    def is_marked(self, record: Record) -> bool:
        """Whether the record is ours and says so itself."""
        return self.owns_record(record) and record.comment == self.mark

    def marked_by_another(self, record: Record) -> bool:
        """Whether another owner of this program claims the name with the record."""
        return (
            record.name == self.name
            and record.type in ADDRESS_TYPES
            and record.comment.startswith(_MARK_FAMILY)
            and record.comment != self.mark
        )

    def is_vpn_address(self, address: IpAddress) -> bool:
        """Whether the address lies in one of the VPN's prefixes."""
        return any(address in prefix for prefix in self.vpn_prefixes)

    def vpn_addresses(self, addresses: Sequence[IpAddress]) -> tuple[IpAddress, ...]:
        """Those of the addresses that lie in one of the VPN's prefixes, in the same order."""
        return tuple(address for address in addresses if self.is_vpn_address(address))
