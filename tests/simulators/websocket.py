"""The server side of a websocket (RFC 6455), with the features that the Kubernetes API uses."""

from __future__ import annotations

import base64
import hashlib
import socket
import struct
from typing import Final

# The constant that RFC 6455 appends to the client's key.
_MAGIC: Final = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"

# Opcodes of frames.
BINARY: Final = 0x2
CLOSE: Final = 0x8
PING: Final = 0x9
PONG: Final = 0xA

# A bit in the first byte of a frame: the frame is the last one of its message.
_FINAL: Final = 0x80
# A bit in the second byte of a frame: the data is masked.
_MASKED: Final = 0x80
# The status of a connection that is closed without an error.
_NORMAL: Final = 1000
# The second byte of a frame is the length of the data, or one of these values if the next bytes are the length.
_LENGTH_IN_2_BYTES: Final = 126
_LENGTH_IN_8_BYTES: Final = 127


def upgrade_headers(key: str, subprotocol: str) -> dict[str, str]:
    """Return the headers of the response that makes a connection a websocket.

    Args:
        key: the client's `Sec-WebSocket-Key`.
        subprotocol: the subprotocol that the server has chosen.
    """
    return {
        "upgrade": "websocket",
        "connection": "Upgrade",
        "sec-websocket-accept": base64.b64encode(hashlib.sha1((key + _MAGIC).encode()).digest()).decode(),
        "sec-websocket-protocol": subprotocol,
    }


def frame(data: bytes, opcode: int = BINARY) -> bytes:
    """Return the only frame of a message from a server. The frames of servers are not masked."""
    if len(data) < _LENGTH_IN_2_BYTES:
        length = bytes([len(data)])
    elif len(data) < 1 << 16:
        length = bytes([_LENGTH_IN_2_BYTES]) + struct.pack("!H", len(data))
    else:
        length = bytes([_LENGTH_IN_8_BYTES]) + struct.pack("!Q", len(data))
    return bytes([_FINAL | opcode]) + length + data


CLOSING: Final = frame(struct.pack("!H", _NORMAL), CLOSE)
"""The close frame of a server that has sent everything."""


def read_pong(connection: socket.socket) -> bytes | None:
    """Return the payload of the client's pong; None if the client sent something else or closed the connection.

    The frames of clients are masked. A pong has the payload of the ping, which was short.
    """
    connection.settimeout(5)
    head = _read(connection, 2)
    if head[:1] != bytes([_FINAL | PONG]):
        return None
    mask = _read(connection, 4)
    data = _read(connection, head[1] & ~_MASKED)
    return bytes(byte ^ mask[position % 4] for position, byte in enumerate(data))


def _read(connection: socket.socket, size: int) -> bytes:
    """Read this many bytes; fewer if the client has closed the connection."""
    data = b""
    while len(data) < size and (piece := connection.recv(size - len(data))):
        data += piece
    return data


def close(connection: socket.socket) -> None:
    """Send a close frame, and wait for the client's close frame or the end of the connection."""
    connection.sendall(CLOSING)
    connection.settimeout(5)
    while connection.recv(4096):
        pass
