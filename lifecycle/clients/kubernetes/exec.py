"""Read the output of a command over a websocket (RFC 6455), with the protocol of `kubectl exec`."""

from __future__ import annotations

import base64
import json
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import httpx
from websocket import ABNF, WebSocketException, frame_buffer

from lifecycle.clients.http import MAX_RESPONSE_BYTES
from lifecycle.clients.kubernetes.access import UPSTREAM
from lifecycle.clients.response import excerpt
from lifecycle.domain.errors import ResponseError, TransientError

# The subprotocols of the websocket, and the channels. The first byte of each message is the number of its channel.
# Source: k8s.io/apimachinery/pkg/util/remotecommand.
_SUBPROTOCOLS: Final = ("v5.channel.k8s.io", "v4.channel.k8s.io")
_STDOUT: Final = 1
_STDERR: Final = 2
_STATUS: Final = 3  # Kubernetes calls it "error".

# The text of container runtimes for a missing program: runc and crun, which adds the name of the program. CRI-O writes
# this text to the standard error of the command.
NO_PROGRAM_TEXT: Final = r"executable file (\S+ )?not found"


@dataclass(frozen=True, slots=True)
class Output:
    """The exit status of a command, and its output. The output can contain secrets."""

    exit_status: int
    stdout: bytes = field(repr=False)
    stderr: bytes = field(repr=False)


def handshake_headers() -> dict[str, str]:
    """Return the headers of a request that upgrades the connection to a websocket."""
    return {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": base64.b64encode(secrets.token_bytes(16)).decode(),
        "Sec-WebSocket-Protocol": ", ".join(_SUBPROTOCOLS),
    }


def read_output(response: httpx.Response, *, what: str) -> Output:
    """Read all output of a command, until the server closes the connection.

    Args:
        response: the response with status 101. The output is read from its connection.
        what: the command, for messages.

    Raises:
        ApiError: the command did not run to its end.
        httpcore.NetworkError, httpcore.TimeoutException: the connection broke, or the time budget is used up.
    """
    if response.headers.get("Sec-WebSocket-Protocol") not in _SUBPROTOCOLS:
        raise ResponseError(f"Malformed response of Kubernetes to the request for {what}.", upstream=UPSTREAM)
    try:
        output = _read(response.extensions["network_stream"], what)
    except WebSocketException as error:
        raise TransientError(f"The connection to {what} broke ({excerpt(str(error))}).", upstream=UPSTREAM) from error
    return Output(
        # The exit status is the last message. If it is missing, the connection broke, and the output may be incomplete.
        exit_status=_exit_status(output[_STATUS], what),
        stdout=bytes(output[_STDOUT]),
        stderr=bytes(output[_STDERR]),
    )


def _read(connection: Any, what: str) -> Mapping[int, bytearray]:
    """Read a network stream of httpcore until the server closes it, and return what each channel contained."""
    received = 0

    def receive(size: int) -> bytes:
        nonlocal received
        data: bytes = connection.read(size)
        if not data:
            raise WebSocketException("closed by the server")
        received += len(data)
        # The size is checked while the data arrives, because a frame can announce any length.
        if received > MAX_RESPONSE_BYTES:
            raise ResponseError(
                f"The output of {what} is larger than {MAX_RESPONSE_BYTES >> 20} MiB.", upstream=UPSTREAM
            )
        return data

    output = {_STDOUT: bytearray(), _STDERR: bytearray(), _STATUS: bytearray()}
    frames = frame_buffer(receive, skip_utf8_validation=True)
    message = bytearray()
    while True:
        frame = frames.recv_frame()
        data = frame.data if isinstance(frame.data, bytes) else frame.data.encode()
        match frame.opcode:
            case ABNF.OPCODE_CLOSE:
                return output
            case ABNF.OPCODE_PING:
                connection.write(ABNF.create_frame(data, ABNF.OPCODE_PONG).format())
            case ABNF.OPCODE_BINARY | ABNF.OPCODE_TEXT | ABNF.OPCODE_CONT:
                message += data
                # Messages of other channels are ignored.
                if frame.fin and message[:1] and message[0] in output:
                    output[message[0]] += message[1:]
                if frame.fin:
                    message.clear()


def _exit_status(text: bytearray, what: str) -> int:
    """Return the exit status, which the channel _STATUS contains in a Status object of the Kubernetes API.

    Raises:
        ApiError: the command did not run to its end.
    """
    try:
        status: Any = json.loads(text)
    except (ValueError, RecursionError):
        raise TransientError(f"The connection to {what} ended before the command did.", upstream=UPSTREAM) from None
    match status:
        case {"status": "Success"}:
            return 0
        case {"status": "Failure", "details": {"causes": [*causes]}}:
            for cause in causes:
                match cause:
                    case {"reason": "ExitCode", "message": str(number)} if re.fullmatch(r"\d{1,3}", number):
                        return int(number)
    message = excerpt(str(status.get("message", ""))) if isinstance(status, dict) else ""
    # A retry does not help if the program is missing. Other errors can be temporary, for example while a container is
    # replaced.
    kind = ResponseError if re.search(NO_PROGRAM_TEXT, message) else TransientError
    raise kind(f"Kubernetes could not run {what}: {message or 'no reason given'}", upstream=UPSTREAM)
