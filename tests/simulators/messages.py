"""Requests and responses of the simulators, independent of what carries them."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar
from urllib.parse import parse_qs

Endpoint = TypeVar("Endpoint")

READS = frozenset({"GET", "HEAD", "OPTIONS"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """An HTTP request.

    Attributes:
        path: decoded.
        query: without the question mark; empty if there is none.
        headers: names in lower case.
        connection: the socket of a served simulator; None for a call in this process.
        on_unix_socket: the request arrived over the server's own socket, which needs no API key.
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
        """The path, and the query after a question mark."""
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

    def __contains__(self, name: str) -> bool:
        return name in self._values

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
        headers: names in lower case, without the content type.
        content_type: "" sends no such header.
        chunks: what is sent instead of the body; None sends the body.
        length: the announced length, if it is not that of the body.
        connection: of a response with status 101 in this process.
    """

    body: bytes = b""
    status: int = 200
    content_type: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    chunks: Iterable[bytes] | None = None
    length: int | None = None
    connection: MemoryConnection | None = None

    def all_headers(self) -> dict[str, str]:
        """The headers with content type and length."""
        headers = {"content-length": str(len(self.body) if self.length is None else self.length), **self.headers}
        if self.content_type:
            headers["content-type"] = self.content_type
        return headers

    def content(self) -> Iterator[bytes]:
        """What is sent as the body."""
        if self.chunks is None:
            yield self.body
        else:
            yield from self.chunks


class MemoryConnection:
    """An upgraded connection in this process: the part of httpcore's network stream that the program uses.

    Args:
        data: what the server sends.
        failure: raised after that; None = the server closes.
    """

    def __init__(self, data: bytes, failure: Exception | None) -> None:
        self._data = data
        self._failure = failure

    def read(self, size: int, timeout: float | None = None) -> bytes:
        """Receive at most so many bytes."""
        if not self._data and self._failure is not None:
            raise self._failure
        data, self._data = self._data[:size], self._data[size:]
        return data

    def write(self, data: bytes, timeout: float | None = None) -> None:
        """Send bytes."""


Handler = Callable[[Request], Response]
"""Answers a request; raises an `httpx.TransportError` if the connection fails."""


def json_response(body: Any, status: int = 200, *, content_type: str = "application/json") -> Response:
    """Compact JSON."""
    return Response(
        json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode(), status, content_type=content_type
    )


def text_response(text: str, status: int, *, content_type: str = "text/plain; charset=utf-8") -> Response:
    """Plain text, or another kind of text."""
    return Response(text.encode(), status, content_type=content_type)


class NoRouteError(LookupError):
    """No route has this path."""


class WrongMethodError(LookupError):
    """A route has this path, and none of them has this method."""


class Router(Generic[Endpoint]):
    """Finds the endpoint of a request.

    Args:
        routes: method, path and endpoint of each; `<name>` in a path matches one segment.
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
            WrongMethodError: a route has this path, and none of them has this method.
        """
        given = path.split("/")
        error: LookupError = NoRouteError(path)
        for allowed, segments, endpoint in self._routes.get(len(given), ()):
            arguments: dict[str, str] = {}
            for segment, value in zip(segments, given, strict=True):
                if segment.startswith("<") and value:
                    arguments[segment[1:-1]] = value
                elif segment != value:
                    break
            else:
                if allowed == method:
                    return endpoint, arguments
                error = WrongMethodError(method)
        raise error
