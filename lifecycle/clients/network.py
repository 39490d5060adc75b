"""A network backend for httpcore, whose connections keep to the caller's time budget."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Sequence
from functools import partial
from math import inf
from typing import Any

import httpcore

from lifecycle.runtime.background import in_background
from lifecycle.runtime.deadline import remaining_s, time_budget


class ResolutionError(OSError):
    """A host name could not be resolved."""


class UnreachableError(OSError):
    """No address of a host accepted a connection."""


class Network(httpcore.NetworkBackend):
    """Opens connections within the caller's time budget, which replaces the time-outs of httpcore.

    Only httpcore's connect time-out still applies. It limits the TCP connection, and separately the TLS handshake.

    Args:
        tls_server_name: the host name that a certificate has to contain; None = the host of the URL.
    """

    def __init__(self, *, tls_server_name: str | None = None) -> None:
        self._backend = httpcore.SyncBackend()
        self._tls_server_name = tls_server_name

    def connect_tcp(
        self, host: str, port: int, timeout: float | None = None, *_args: Any, **_options: Any
    ) -> httpcore.NetworkStream:
        """Connect to the first address of the host that accepts a connection."""
        kind: type[Exception] = httpcore.ConnectError
        reason = "no address"
        with time_budget(timeout or inf):
            addresses = _resolve(host, port)
            for number, address in enumerate(addresses):
                try:
                    # An address that drops packets must leave time for the others, so each gets an equal share.
                    time_s = _remaining_s(httpcore.ConnectTimeout) / (len(addresses) - number)
                    stream = self._backend.connect_tcp(address, port, time_s)
                    return Stream(stream, tls_server_name=self._tls_server_name)
                except (httpcore.ConnectError, httpcore.ConnectTimeout) as failure:
                    kind, reason = type(failure), failure.args[0].strerror
        raise kind(UnreachableError(reason))


class Stream(httpcore.NetworkStream):
    """An open connection, with or without TLS."""

    def __init__(self, stream: httpcore.NetworkStream, *, tls_server_name: str | None = None) -> None:
        self._stream = stream
        self._tls_server_name = tls_server_name

    def read(self, max_bytes: int, *_args: Any, **_options: Any) -> bytes:
        """Wait for data, and return it; b"" if the peer has closed the connection."""
        return self._stream.read(max_bytes, _remaining_s(httpcore.ReadTimeout))

    def write(self, buffer: bytes, *_args: Any, **_options: Any) -> None:
        """Send all bytes."""
        self._stream.write(buffer, _remaining_s(httpcore.WriteTimeout))

    def close(self) -> None:
        """Close the connection."""
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        """Continue this connection with TLS."""
        name = self._tls_server_name or server_hostname
        try:
            with time_budget(timeout or inf):
                return Stream(self._stream.start_tls(ssl_context, name, _remaining_s(httpcore.ConnectTimeout)))
        except BaseException:
            self.close()
            raise

    def get_extra_info(self, info: str) -> Any:
        """Return the value that httpcore requests by a name; None if it is not known."""
        return self._stream.get_extra_info(info)


def _resolve(host: str, port: int) -> Sequence[str]:
    """Return the IP addresses of a host, in the order of preference (RFC 6724)."""
    # The resolver of the C library cannot be interrupted, so it runs in a thread.
    look_up = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
    try:
        results = in_background(look_up, name="resolve").result(remaining_s())
    except (OSError, UnicodeError) as error:
        reason = "timed out" if isinstance(error, TimeoutError) else getattr(error, "strerror", "not a host name")
        raise httpcore.ConnectError(ResolutionError(f"Resolving {host} failed ({reason})")) from None
    return [str(address[0]) for *_, address in results]


def _remaining_s(used_up: type[Exception]) -> float:
    """Return how many seconds of the time budget are left, or raise this error of httpcore if it is used up."""
    try:
        return remaining_s()
    except TimeoutError as error:
        raise used_up(error) from None
