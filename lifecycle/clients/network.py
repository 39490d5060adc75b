"""A network backend for httpcore. It opens TCP and TLS connections within the caller's time budget."""

from __future__ import annotations

import os
import select
import selectors
import socket
import ssl
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from ipaddress import ip_address
from math import inf
from time import monotonic
from typing import Any

import httpcore

from lifecycle.runtime.background import in_background
from lifecycle.runtime.deadline import remaining_s, time_budget

# Source: RFC 8305 (Happy Eyeballs), section 5: the recommended delay between two attempts.
_ATTEMPT_DELAY_S = 0.25

# All attempts start within this share of the time budget. With many addresses, the delay between two attempts is
# shorter.
_SHARE_FOR_ATTEMPTS = 0.5

# The first bytes of a TLS alert, the error message of TLS.
# Source: RFC 8446, section 5.1.
_TLS_ALERT = b"\x15\x03"

Address = tuple[socket.AddressFamily, Any]


class ResolutionError(OSError):
    """A host name could not be resolved."""


class ResolutionTimeoutError(ResolutionError, TimeoutError):
    """The host name was not resolved in time. The argument is the host name."""


class TlsExpectedError(OSError):
    """The peer responded to a plain HTTP request with a TLS alert."""


class UnreachableError(OSError):
    """No address of a host accepted a connection."""


class UnreachableTimeoutError(UnreachableError, TimeoutError):
    """No address of a host accepted a connection in time."""


class Network(httpcore.NetworkBackend):
    """Opens connections within the caller's time budget, which replaces the time-outs of httpcore.

    Only httpcore's connect time-out still applies. It limits the TCP connection, and separately the TLS handshake.

    Args:
        tls_server_name: the host name that a certificate has to contain; None = the host of the URL.
    """

    def __init__(self, *, tls_server_name: str | None = None) -> None:
        self._tls_server_name = tls_server_name

    def connect_tcp(
        self, host: str, port: int, timeout: float | None = None, *_args: Any, **_options: Any
    ) -> httpcore.NetworkStream:
        """Connect to the first address of the host that accepts a connection."""
        with _httpcore_errors(httpcore.ConnectTimeout, httpcore.ConnectError), time_budget(timeout or inf):
            connection = connect(resolve(host, port))
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return Stream(connection, tls_server_name=self._tls_server_name)


class Stream(httpcore.NetworkStream):
    """An open connection, with or without TLS."""

    def __init__(self, connection: socket.socket, *, tls_server_name: str | None) -> None:
        self._socket = connection
        self._tls_server_name = tls_server_name
        # Until the first data arrives over plain HTTP, it is unknown whether the peer expects TLS.
        self._may_expect_tls = not isinstance(connection, ssl.SSLSocket)

    def read(self, max_bytes: int, *_args: Any, **_options: Any) -> bytes:
        """Wait for data, and return it; b"" if the peer has closed the connection."""
        with _httpcore_errors(httpcore.ReadTimeout, httpcore.ReadError):
            self._socket.settimeout(remaining_s())
            data = self._socket.recv(max_bytes)
            if self._may_expect_tls and data.startswith(_TLS_ALERT):
                raise TlsExpectedError
            self._may_expect_tls = False
            return data

    def write(self, buffer: bytes, *_args: Any, **_options: Any) -> None:
        """Send all bytes."""
        with _httpcore_errors(httpcore.WriteTimeout, httpcore.WriteError):
            unsent = memoryview(buffer)
            while unsent:
                self._socket.settimeout(remaining_s())
                unsent = unsent[self._socket.send(unsent) :]

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        """Continue this connection with TLS."""
        with _httpcore_errors(httpcore.ConnectTimeout, httpcore.ConnectError), time_budget(timeout or inf):
            try:
                # Python's ssl module applies the socket's time-out to the whole handshake.
                self._socket.settimeout(remaining_s())
                name = self._tls_server_name or server_hostname
                secured = ssl_context.wrap_socket(self._socket, server_hostname=name)
            except BaseException:
                self.close()
                raise
        return Stream(secured, tls_server_name=None)

    def get_extra_info(self, info: str) -> Any:
        """Return the value that httpcore requests by a name; None if it is not known."""
        # httpcore uses other values only for HTTP/2, which is disabled.
        if info != "is_readable":
            return None
        # True if the peer has sent data or closed the connection.
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return bool(poll.poll(0))


def resolve(host: str, port: int) -> Sequence[Address]:
    """Return the addresses of a host, in the order of preference (RFC 6724).

    Raises:
        ResolutionError: the host has no address, or was not resolved in time.
    """
    look_up = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
    try:
        # The resolver of the C library cannot be interrupted, so it runs in a thread.
        results = look_up() if _is_address(host) else in_background(look_up, name="resolve").result(remaining_s())
    except TimeoutError:
        raise ResolutionTimeoutError(host) from None
    except socket.gaierror as error:
        raise ResolutionError(f"Resolving {host} failed ({error.strerror})") from None
    except UnicodeError:
        raise ResolutionError(f"Resolving {host} failed (not a host name)") from None
    return [(family, address) for family, _, _, _, address in results]


def connect(addresses: Sequence[Address]) -> socket.socket:
    """Connect to the first of one or more addresses that accepts a connection.

    Each attempt starts a short time after the previous one, even if the previous ones are not finished. Otherwise, one
    address that drops packets would use up the time budget.

    Raises:
        UnreachableError: no address accepted a connection, or none accepted one in time.
    """
    untried = deque(addresses)
    delay_s = min(_ATTEMPT_DELAY_S, _SHARE_FOR_ATTEMPTS * remaining_s() / len(addresses))
    failure = UnreachableError()
    with selectors.DefaultSelector() as selector:
        try:
            next_attempt_at = monotonic()
            while untried or selector.get_map():
                if untried and monotonic() >= next_attempt_at:
                    next_attempt_at = monotonic() + delay_s
                    try:
                        _start_attempt(untried.popleft(), selector)
                    except OSError as error:
                        failure, next_attempt_at = UnreachableError(error.strerror), monotonic()
                wait_s = remaining_s()
                if untried:
                    wait_s = min(wait_s, max(0.0, next_attempt_at - monotonic()))
                for key, _ in selector.select(wait_s):
                    attempt: socket.socket = selector.unregister(key.fileobj).data
                    code = attempt.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                    if code == 0:
                        return attempt
                    attempt.close()
                    # After a failure, the next attempt starts without a delay.
                    failure, next_attempt_at = UnreachableError(os.strerror(code)), monotonic()
        except TimeoutError:
            raise UnreachableTimeoutError from None
        finally:
            # Close the sockets of all attempts that have not finished.
            for key in selector.get_map().values():
                key.data.close()
    raise failure


def _start_attempt(address: Address, selector: selectors.BaseSelector) -> None:
    """Start to connect to an address. The selector reports the socket (`data`) as writable after success or failure."""
    family, socket_address = address
    attempt = socket.socket(family, socket.SOCK_STREAM)
    try:
        attempt.settimeout(0)
        with suppress(BlockingIOError):
            attempt.connect(socket_address)
    except BaseException:
        attempt.close()
        raise
    selector.register(attempt, selectors.EVENT_WRITE, data=attempt)


def _is_address(host: str) -> bool:
    with suppress(ValueError):
        return bool(ip_address(host.partition("%")[0]))
    return False


@contextmanager
def _httpcore_errors(on_timeout: type[Exception], otherwise: type[Exception]) -> Iterator[None]:
    """Turn an OSError into an error of httpcore with this OSError as argument, because httpcore resets `__cause__`."""
    try:
        yield
    except TimeoutError as error:
        raise on_timeout(error) from error
    except OSError as error:
        raise otherwise(error) from error
