"""The VPN address that this pod really has: all containers of a pod see the same interfaces."""

from __future__ import annotations

import socket
from ipaddress import ip_address

import ifaddr

from lifecycle.domain.model import IpAddress


def interface_addresses(name: str | None) -> tuple[IpAddress, ...] | None:
    """Return every address of a network interface, in no particular order.

    Returns:
        None if the interface does not exist, or no name is given.
    """
    if not name or name not in (interface for _, interface in socket.if_nameindex()):
        return None
    return tuple(
        # ifaddr gives IPv4 as text, IPv6 as (text, flow, scope).
        ip_address(ip.ip if isinstance(ip.ip, str) else ip.ip[0])
        for adapter in ifaddr.get_adapters()
        if adapter.nice_name == name
        for ip in adapter.ips
    )
