"""The VPN addresses of this pod. All containers of a pod share its network interfaces."""

from __future__ import annotations

import errno
import socket
from ipaddress import ip_address

import ifaddr

from lifecycle.domain.model import IpAddress
from lifecycle.runtime.stop import StopEvent

# Source: linux/rtnetlink.h. A link can disappear without a message about its addresses.
_RTMGRP_LINK, _RTMGRP_IPV4_IFADDR, _RTMGRP_IPV6_IFADDR = 0x1, 0x10, 0x100

# An interface gets its addresses one after another, and a cluster node can have many interfaces.
_SETTLE_S = 0.1
_MAX_MESSAGES = 100

# How often to read the interface if there are no events, and if there are, in case one was lost.
_POLL_S, _SAFETY_POLL_S = 1.0, 60.0


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


class InterfaceEvents:
    """Waits that end when an interface or address of this network namespace changes.

    The kernel reports changes over netlink. Their content is not read. If the subscription is refused, as by gVisor,
    the waits end once a second.

    Args:
        stop: ends a wait.
    """

    def __init__(self, stop: StopEvent) -> None:
        self._stop = stop
        self._socket = _subscribe()

    def close(self) -> None:
        """End the subscription."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def wait(self, timeout_s: float, *, is_settled: bool) -> None:
        """Wait until the interface should be read again.

        Args:
            timeout_s: the longest wait.
            is_settled: no change is expected soon. Otherwise the wait ends within a second, even without an event.
        """
        if self._socket is None:
            self._stop.wait(min(timeout_s, _POLL_S))
        elif self._stop.wait_readable(self._socket, min(timeout_s, _SAFETY_POLL_S if is_settled else _POLL_S)):
            self._stop.wait(_SETTLE_S)
            self._drain(self._socket)

    def _drain(self, events: socket.socket) -> None:
        for _ in range(_MAX_MESSAGES):
            try:
                events.recv(1)
            except BlockingIOError:
                return
            except OSError as error:
                # Some messages did not fit into the buffer.
                if error.errno != errno.ENOBUFS:
                    self.close()
                    return


def _subscribe() -> socket.socket | None:
    try:
        events = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE)
    except (AttributeError, OSError):
        return None
    try:
        # It only matters that a message arrived. A small buffer limits how many have to be read.
        events.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        events.bind((0, _RTMGRP_LINK | _RTMGRP_IPV4_IFADDR | _RTMGRP_IPV6_IFADDR))
    except OSError:
        events.close()
        return None
    return events
