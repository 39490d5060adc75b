"""Read the addresses of this pod's VPN interface, and wait for changes of the interface.

The tailscale container creates the interface. All containers of a pod share its network interfaces.
"""

from __future__ import annotations

import socket
from contextlib import suppress
from ipaddress import ip_address

import ifaddr

from lifecycle.domain.model import IpAddress
from lifecycle.runtime.stop import StopEvent

# The netlink groups to subscribe to. The group of links is needed, because an interface (a link) can disappear without
# a message about its addresses.
# Source: linux/rtnetlink.h.
_RTMGRP_LINK, _RTMGRP_IPV4_IFADDR, _RTMGRP_IPV6_IFADDR = 0x1, 0x10, 0x100

# The time to wait after the first message, because the interface may not have all of its addresses yet.
_SETTLE_S = 0.1
# The largest number of messages to discard at a time. On a host network with many interfaces, new messages may arrive
# all the time.
_MAX_MESSAGES = 100

# The longest wait if the kernel refuses the subscription, or if the node is not registered yet.
_POLL_S = 1.0
# The longest wait otherwise, in case the message about a change was lost.
_SAFETY_POLL_S = 60.0


def interface_addresses(name: str | None) -> tuple[IpAddress, ...] | None:
    """Return every address of a network interface, in no particular order; None if no interface has this name.

    Raises:
        OSError: the interfaces could not be read, for example because too many files are open.
    """
    if not name or name not in (interface for _, interface in socket.if_nameindex()):
        return None
    return tuple(
        # ifaddr represents an IPv4 address as text, and an IPv6 address as (text, flow, scope).
        ip_address(ip.ip if isinstance(ip.ip, str) else ip.ip[0])
        for adapter in ifaddr.get_adapters()
        if adapter.nice_name == name
        for ip in adapter.ips
    )


class InterfaceEvents:
    """Waits until an interface or address of this network namespace changes.

    The kernel reports changes in netlink messages, whose content is ignored. If the kernel refuses the subscription, as
    in gVisor, each wait ends within a second.
    """

    def __init__(self, stop: StopEvent) -> None:
        self._stop = stop
        self._netlink: socket.socket | None = None
        try:
            self._netlink = socket.socket(
                socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE
            )
            # One message is enough to end a wait. The smallest possible buffer limits how many messages have to be
            # discarded.
            self._netlink.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
            self._netlink.bind((0, _RTMGRP_LINK | _RTMGRP_IPV4_IFADDR | _RTMGRP_IPV6_IFADDR))
        except (AttributeError, OSError):
            self.close()

    def close(self) -> None:
        """End the subscription."""
        if self._netlink is not None:
            self._netlink.close()
            self._netlink = None

    def wait(self, timeout_s: float, *, is_settled: bool) -> None:
        """Wait until the interface should be read again.

        Args:
            is_settled: no change is expected soon. Otherwise the wait ends within a second, even without an event.
        """
        if self._netlink is None:
            self._stop.wait(min(timeout_s, _POLL_S))
        elif self._stop.wait_readable(self._netlink, min(timeout_s, _SAFETY_POLL_S if is_settled else _POLL_S)):
            self._stop.wait(_SETTLE_S)
            for _ in range(_MAX_MESSAGES):
                # An error means that there is no message, or that some did not fit into the buffer.
                with suppress(OSError):
                    self._netlink.recv(1)
