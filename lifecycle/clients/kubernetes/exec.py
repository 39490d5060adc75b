"""Run one command in a container: the Kubernetes API's exec, over a websocket."""

from __future__ import annotations

import json
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kubernetes.client.configuration import Configuration
from kubernetes.stream.ws_client import (
    ERROR_CHANNEL,
    STDERR_CHANNEL,
    STDOUT_CHANNEL,
    V4_CHANNEL_PROTOCOL,
    V5_CHANNEL_PROTOCOL,
    get_websocket_url,
    websocket_proxycare,
)
from websocket import ABNF, WebSocket

from lifecycle.clients.http import MAX_ANSWER_BYTES
from lifecycle.domain.errors import ApiError, ResponseError, TransientError

UPSTREAM = "Kubernetes"


@dataclass(frozen=True, slots=True)
class Output:
    """How a command ended, and what it wrote; a secret may be in it."""

    exit_status: int
    stdout: bytes = field(repr=False)
    stderr: bytes = field(repr=False)


class Exec:
    """One command that runs in a container.

    Not by the Kubernetes client's own `stream`: that can be given no time-out for the way to the server, and
    reads an output of megabytes in quadratic time.

    Args:
        configuration: of the Kubernetes client.
        timeout_s: for each step on the way, and each read.
    """

    def __init__(self, configuration: Configuration, *, timeout_s: float) -> None:
        self._configuration = configuration
        self._timeout_s = timeout_s
        self._socket = WebSocket(sslopt=_tls(configuration), skip_utf8_validation=True)

    def run(self, url: str, headers: Mapping[str, str]) -> Output:
        """Run it and read all that it writes.

        Args:
            url: of the exec request, the command in its query.
            headers: with our credentials.

        Raises:
            ApiError: it did not run to its end.
            WebSocketException, OSError: neither did the connection.
        """
        options: dict[str, Any] = {
            "header": [f"{name}: {value}" for name, value in headers.items()],
            "subprotocols": [V5_CHANNEL_PROTOCOL, V4_CHANNEL_PROTOCOL],
            "timeout": self._timeout_s,
            # Our credentials would go along.
            "redirect_limit": 0,
        }
        if self._configuration.proxy or self._configuration.proxy_headers:
            options = websocket_proxycare(options, self._configuration, url, headers)
        try:
            self._socket.connect(get_websocket_url(url), **options)
            written = self._read()
        finally:
            # `close` would leave the socket open when the other end closed first.
            self._socket.shutdown()
        return Output(
            # It comes last: without it the connection was cut, and what was written may be half.
            exit_status=_exit_status(written[ERROR_CHANNEL]),
            stdout=bytes(written[STDOUT_CHANNEL]),
            stderr=bytes(written[STDERR_CHANNEL]),
        )

    def abort(self) -> None:
        """Cut the connection, from any thread: whoever reads it then finds its end."""
        self._socket.abort()

    def _read(self) -> Mapping[int, bytearray]:
        """All that comes until the other end closes, by channel."""
        written = {STDOUT_CHANNEL: bytearray(), STDERR_CHANNEL: bytearray(), ERROR_CHANNEL: bytearray()}
        while True:
            opcode, data = self._socket.recv_data(control_frame=True)
            if opcode == ABNF.OPCODE_CLOSE:
                return written
            # A message's first byte is its channel; there are others, such as v5's signal that one was closed.
            if opcode in (ABNF.OPCODE_BINARY, ABNF.OPCODE_TEXT) and data and data[0] in written:
                written[data[0]] += data[1:]
            if sum(map(len, written.values())) > MAX_ANSWER_BYTES:
                raise ResponseError(f"the command wrote more than {MAX_ANSWER_BYTES >> 20} MiB", upstream=UPSTREAM)


def _tls(configuration: Configuration) -> dict[str, Any]:
    """What the Kubernetes client is told about TLS, in the websocket's terms."""
    given = {
        # Whoever asks for less is refused before.
        "cert_reqs": ssl.CERT_REQUIRED,
        "ca_certs": configuration.ssl_ca_cert,
        "certfile": configuration.cert_file,
        "keyfile": configuration.key_file,
        "server_hostname": configuration.tls_server_name,
    }
    return {name: value for name, value in given.items() if value is not None}


def _exit_status(text: bytearray) -> int:
    """The exit status from what stands on the error channel: a Status of the Kubernetes API.

    Raises:
        ApiError: the command did not run to its end.
    """
    try:
        status: Any = json.loads(text)
    except ValueError:
        raise TransientError("the command's connection ended before the command did", upstream=UPSTREAM) from None
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
    if "executable file not found" in message:
        return ResponseError(f"the container has no such command: {message}", upstream=UPSTREAM)
    return TransientError(f"the command could not be run: {message or 'for no given reason'}", upstream=UPSTREAM)
