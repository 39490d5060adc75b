"""Run one command in a container: the Kubernetes API's exec, over a websocket."""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field
from typing import Any

from kubernetes.client.configuration import Configuration
from kubernetes.stream.ws_client import (
    ERROR_CHANNEL,
    STDERR_CHANNEL,
    STDOUT_CHANNEL,
    WSClient,
    get_websocket_url,
)

from lifecycle.clients.http import MAX_ANSWER_BYTES
from lifecycle.errors import ApiError, ResponseError, TransientError

SERVICE = "Kubernetes"


@dataclass(frozen=True, slots=True)
class Output:
    """How a command ended, and what it wrote; a secret may be in it."""

    exit_status: int
    stdout: bytes = field(repr=False)
    stderr: bytes = field(repr=False)


class Exec:
    """One command that runs in a container.

    Args:
        configuration: of the Kubernetes client.
    """

    def __init__(self, configuration: Configuration) -> None:
        self._configuration = configuration
        self._stream: WSClient | None = None

    def run(self, url: str, headers: Mapping[str, str]) -> Output:
        """Run it and read all that it writes.

        Args:
            url: of the exec request, the command in its query.
            headers: with our credentials.

        Raises:
            ApiError: it did not run to its end.
            WebSocketException, OSError: neither did the connection.
        """
        # Bytes, since a character may be cut between two frames. The client offers both subprotocols;
        # they differ in how a channel is closed, which it knows.
        stream = WSClient(self._configuration, get_websocket_url(url), headers, capture_all=False, binary=True)
        self._stream = stream
        written: dict[int, list[bytes]] = {STDOUT_CHANNEL: [], STDERR_CHANNEL: [], ERROR_CHANNEL: []}
        size = 0
        with closing(stream):
            while stream.is_open():
                stream.update(timeout=None)
                for channel, chunks in written.items():
                    chunks.append(stream.read_channel(channel))
                    size += len(chunks[-1])
                if size > MAX_ANSWER_BYTES:
                    raise ResponseError(f"the command wrote more than {MAX_ANSWER_BYTES >> 20} MiB", service=SERVICE)
        return Output(
            # It comes last: without it the connection was cut, and what was written may be half.
            exit_status=_exit_status(b"".join(written[ERROR_CHANNEL])),
            stdout=b"".join(written[STDOUT_CHANNEL]),
            stderr=b"".join(written[STDERR_CHANNEL]),
        )

    def abort(self) -> None:
        """Cut the connection, from any thread: whoever reads it then finds its end."""
        if self._stream is not None:
            with suppress(OSError, AttributeError):
                self._stream.sock.sock.shutdown(socket.SHUT_RDWR)


def _exit_status(text: bytes) -> int:
    """The exit status from what stands on the error channel: a Status of the Kubernetes API.

    Raises:
        ApiError: the command did not run to its end.
    """
    try:
        status: Any = json.loads(text)
    except ValueError:
        raise TransientError("the command's connection ended before the command did", service=SERVICE) from None
    match status:
        case {"status": "Success"}:
            return 0
        case {"status": "Failure", "details": {"causes": [*causes]}}:
            for cause in causes:
                match cause:
                    case {"reason": "ExitCode", "message": str(number)} if number.isdecimal():
                        return int(number)
    raise _not_run(str(status.get("message", "")) if isinstance(status, dict) else "")


def _not_run(message: str) -> ApiError:
    # The image has no such program: no try will mend that. All else, such as a container that is being
    # replaced, may be over in a moment.
    if "executable file not found" in message or "no such file or directory" in message:
        return ResponseError(f"the container has no such command: {message}", service=SERVICE)
    return TransientError(f"the command could not be run: {message or 'for no given reason'}", service=SERVICE)
