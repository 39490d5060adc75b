"""The DNS server of the cluster in tests. A lookup function decides which address a name has."""

from __future__ import annotations

import ipaddress
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_TYPE_A = 1
_FLAGS = 0x8580
"""The flags of an authoritative response with recursion desired and available."""
_NAME_ERROR = 3
_TTL_S = 1


def response_to(query: bytes, lookup: Callable[[str], str | None]) -> bytes:
    """Return the response to a query: the IPv4 address of a name, or a name error (RFC 1035, section 4)."""
    labels = []
    # The header has 12 bytes.
    end = 12
    while length := query[end]:
        labels.append(query[end + 1 : end + 1 + length].decode().lower())
        end += 1 + length
    # Skip the end of the name (1 byte), the type and the class (2 bytes each).
    end += 5
    (record_type,) = struct.unpack_from("!H", query, end - 4)
    address = lookup(".".join(labels))
    has_answer = address is not None and record_type == _TYPE_A
    flags = _FLAGS | (_NAME_ERROR if address is None else 0)
    response = query[:2] + struct.pack("!5H", flags, 1, int(has_answer), 0, 0) + query[12:end]
    if has_answer:
        # 0xC00C refers to the name in the question.
        data = ipaddress.IPv4Address(address).packed
        response += struct.pack("!HHHIH", 0xC00C, _TYPE_A, 1, _TTL_S, len(data)) + data
    return response


@contextmanager
def serve_dns(address: str, lookup: Callable[[str], str | None]) -> Iterator[None]:
    """Respond to queries on UDP port 53 of an address in the caller's network namespace, until the block ends."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind((address, 53))

        def run() -> None:
            while True:
                query, client = server.recvfrom(4096)
                if not query:
                    return
                server.sendto(response_to(query, lookup), client)

        thread = threading.Thread(target=run, name="dns", daemon=True)
        thread.start()
        try:
            yield
        finally:
            # An empty query ends the thread.
            server.sendto(b"", (address, 53))
            thread.join()
