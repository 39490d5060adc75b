"""Decide which requests of this program's clients do not use a proxy."""

from __future__ import annotations

import re
from ipaddress import ip_address, ip_network
from urllib.parse import urlsplit

from lifecycle.domain.model import IpAddress
from lifecycle.domain.ownership import IpNetwork

_WITH_PORT = re.compile(r"(.+):(\d{0,5})", re.ASCII)
_BRACKETED = re.compile(r"\[([^]]*)\](/\d+)?", re.ASCII)
_DEFAULT_PORT = {"http": 80, "https": 443}


def is_direct(url: str, no_proxy: str) -> bool:
    """Return True if requests to a URL do not use HTTP_PROXY, HTTPS_PROXY or ALL_PROXY.

    The rules for NO_PROXY are those of Go programs such as kubectl and tailscale. Unlike them, this program never uses
    these proxies for names inside the cluster.

    Args:
        no_proxy: what to reach directly: host names, addresses, networks or `*`, each with or without a port.
    """
    parts = urlsplit(url)
    host = (parts.hostname or "").rstrip(".")
    port = parts.port or _DEFAULT_PORT[parts.scheme]
    return _is_internal(host) or any(_matches(entry, host, port) for entry in re.split(r"[,\s]+", no_proxy))


def _is_internal(host: str) -> bool:
    """Return True for loopback addresses, for localhost, and for names that only the cluster's DNS resolves."""
    address = _address(host)
    if address is not None:
        return address.is_loopback
    return "." not in host or host.endswith((".localhost", ".svc", ".svc.cluster.local"))


def _matches(entry: str, host: str, port: int) -> bool:
    """Return True if an entry of NO_PROXY exempts the host. A malformed entry exempts no host."""
    name = entry.lower()
    with_port = _WITH_PORT.fullmatch(name)
    # An IPv6 address can end in a colon and digits, which are a port only after brackets.
    if with_port and ("]" in with_port[1] or _network(name) is None):
        # Without digits after the colon, an entry is for every port.
        if with_port[2] and int(with_port[2]) != port:
            return False
        name = with_port[1]
    if name == "*":
        return True
    address = _address(host)
    if address is not None:
        network = _network(name)
        return network is not None and address in network
    # `.example.com` and `*.example.com` exempt only subdomains. `example.com` also exempts the host with this name.
    suffix = name.removeprefix("*").rstrip(".")
    return host.endswith(f".{suffix.removeprefix('.')}") or host == suffix


def _address(host: str) -> IpAddress | None:
    try:
        return ip_address(host)
    except ValueError:
        return None


def _network(text: str) -> IpNetwork | None:
    bracketed = _BRACKETED.fullmatch(text)
    try:
        return ip_network(bracketed.expand(r"\1\2") if bracketed else text, strict=False)
    except ValueError:
        return None
