"""Two faults: a compressed response that is very large when decoded, and a standard output that cannot be written."""

from __future__ import annotations

import gzip
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from random import Random
from typing import Any, Final

import structlog

from lifecycle.runtime import logs
from tests.simulators.faults import Fault, answer

DECODED_BYTES: Final = 48 * 1024 * 1024
"""The size of the decoded body. The program accepts at most 32 MiB."""


@cache
def compressed_response(*, twice: bool) -> Fault:
    """Return a fault that sends a small compressed body. Decoded, it is an empty list followed by many spaces.

    Args:
        twice: True if the compressed body is compressed again.
    """
    body = gzip.compress(b'{"success":true,"result":[],"nodes":[],"users":[]}'.ljust(DECODED_BYTES), compresslevel=1)
    if twice:
        body = gzip.compress(body)
    return answer(200, body, headers={"Content-Encoding": "gzip, gzip" if twice else "gzip"})


@contextmanager
def failing_output(random: Random, events: list[Any]) -> Iterator[None]:
    """During the block, log to a standard output that cannot be written. Append each log event to the list, too."""
    reader, writer = os.pipe()
    kind = random.choice(("broken pipe", "full disk", "stuck pipe", "closed"))
    if kind == "full disk":
        full = os.open("/dev/full", os.O_WRONLY)
        os.dup2(full, writer)
        os.close(full)
    elif kind == "stuck pipe":
        # Let writes to the full pipe fail. By default they would block, and the tests would wait for them.
        os.set_blocking(writer, False)
        with suppress(BlockingIOError):
            while True:
                os.write(writer, bytes(4096))
    else:
        os.close(reader)
        reader = os.open(os.devnull, os.O_RDONLY)

    def capture(_logger: object, _method: str, event: Any) -> Any:
        events.append(dict(event))
        return event

    outputs = logs._outputs  # noqa: SLF001 - no public function replaces the outputs
    previous_stdout, previous_outputs = sys.stdout, dict(outputs)
    config = structlog.get_config()
    stream = os.fdopen(writer, "w", closefd=False)
    sys.stdout = None if kind == "closed" else stream
    outputs.clear()
    try:
        logs.configure_logs(console=False, level="debug")
        structlog.configure(processors=[capture, *structlog.get_config()["processors"]])
        yield
    finally:
        # A thread writes the log. It must finish before the descriptor is closed, because another file may then get the
        # same descriptor.
        os.close(reader)
        logs.flush_logs(timeout_s=10.0)
        with suppress(OSError):
            stream.close()
        os.close(writer)
        sys.stdout = previous_stdout
        outputs.clear()
        outputs.update(previous_outputs)
        structlog.configure(**config)
