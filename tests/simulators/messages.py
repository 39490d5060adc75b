"""The requests and responses of the simulators, and the router that finds the endpoint of a request.

They are the same whether a client calls a simulator in this process or uses HTTP.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar
from urllib.parse import parse_qs

Endpoint = TypeVar("Endpoint")

READ_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
"""HTTP methods that change nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """An HTTP request.

    Attributes:
        path: the path without percent-encoding.
        query: the query without the question mark; empty if there is none.
        headers: the headers. Their names are in lower case.
        connection: the socket, if the simulator is served on loopback; None for a call in this process.
        on_unix_socket: True if the `headscale` command sent the request over a Unix socket, without an API key.
    """

    method: str
    path: str
    query: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    connection: socket.socket | None = None
    on_unix_socket: bool = False

    @property
    def target(self) -> str:
        """The path, followed by a question mark and the query if there is one."""
        return f"{self.path}?{self.query}" if self.query else self.path

    @property
    def parameters(self) -> Parameters:
        """The parameters of the query."""
        return Parameters(parse_qs(self.query, keep_blank_values=True))

    def json(self) -> Any:
        """The body as JSON.

        Raises:
            ValueError: the body is not JSON.
        """
        return json.loads(self.body)


class Parameters:
    """The parameters of a query, each of which may appear several times."""

    def __init__(self, values: Mapping[str, list[str]]) -> None:
        self._values = values

    @property
    def names(self) -> set[str]:
        """The names of all parameters."""
        return set(self._values)

    def get(self, name: str, default: str = "") -> str:
        """The first value of a parameter."""
        return self._values[name][0] if name in self._values else default

    def all(self, name: str) -> list[str]:
        """Every value of a parameter."""
        return self._values.get(name, [])


@dataclass(slots=True)
class Response:
    """An HTTP response.

    Attributes:
        headers: the headers without Content-Type and Content-Length. Their names are in lower case.
        content_type: the Content-Type header; "" = there is none.
        chunks: the parts of the body, which replace `body`; None = `body` is the whole body.
        length: the Content-Length header; None = the length of the body.
        connection: the upgraded connection of a response with status 101, if the client is in this process.
    """

    body: bytes = b""
    status: int = 200
    content_type: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    chunks: Iterable[bytes] | None = None
    length: int | None = None
    connection: MemoryConnection | None = None

    def all_headers(self) -> dict[str, str]:
        """Return all headers, including Content-Type and Content-Length."""
        headers = {"content-length": str(len(self.body) if self.length is None else self.length), **self.headers}
        if self.content_type:
            headers["content-type"] = self.content_type
        return headers

    def content(self) -> Iterator[bytes]:
        """Yield the parts of the body as they are sent."""
        if self.chunks is None:
            yield self.body
        else:
            yield from self.chunks


class MemoryConnection:
    """A connection that was upgraded to a websocket, for a client in this process.

    It has the methods of httpcore's `NetworkStream` that the program uses.

    Args:
        data: the bytes that the server sends.
        failure: the exception that `read` raises after the data; None = the server closes the connection.
    """

    def __init__(self, data: bytes, failure: Exception | None) -> None:
        self._data = data
        self._failure = failure

    def read(self, size: int, timeout: float | None = None) -> bytes:
        """Receive at most this many bytes."""
        if not self._data and self._failure is not None:
            raise self._failure
        data, self._data = self._data[:size], self._data[size:]
        return data

    def write(self, data: bytes, timeout: float | None = None) -> None:
        """Ignore the data, because a simulator has already sent everything."""


Handler = Callable[[Request], Response]
"""A function that returns the response to a request. It raises an `httpx.TransportError` if the connection fails."""


def json_response(body: Any, status: int = 200, *, content_type: str = "application/json") -> Response:
    """Return a response with compact JSON."""
    return Response(
        json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode(), status, content_type=content_type
    )


def text_response(text: str, status: int, *, content_type: str = "text/plain; charset=utf-8") -> Response:
    """Return a response with text, by default plain text."""
    return Response(text.encode(), status, content_type=content_type)


class NoRouteError(LookupError):
    """No route has this path."""


class WrongMethodError(LookupError):
    """There are routes with this path, but not with this method."""


class Router(Generic[Endpoint]):
    """Finds the endpoint of a request.

    Args:
        routes: the method, path and endpoint of each route. In a path, `<name>` matches any segment that is not empty.
    """

    def __init__(self, routes: Iterable[tuple[str, str, Endpoint]]) -> None:
        self._routes: dict[int, list[tuple[str, list[str], Endpoint]]] = {}
        for method, path, endpoint in routes:
            segments = path.split("/")
            self._routes.setdefault(len(segments), []).append((method, segments, endpoint))

    def match(self, method: str, path: str) -> tuple[Endpoint, dict[str, str]]:
        """Return the endpoint and the values of the named segments.

        Raises:
            NoRouteError: no route has this path.
            WrongMethodError: there are routes with this path, but not with this method.
        """
        values = path.split("/")
        error: LookupError = NoRouteError(path)
        for route_method, segments, endpoint in self._routes.get(len(values), ()):
            arguments: dict[str, str] = {}
            for segment, value in zip(segments, values, strict=True):
                if segment.startswith("<") and value:
                    arguments[segment[1:-1]] = value
                elif segment != value:
                    break
            else:
                if route_method == method:
                    return endpoint, arguments
                error = WrongMethodError(method)
        raise error
