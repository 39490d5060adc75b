"""Two faults: a compressed response that decodes to a large one, and a standard output that cannot be written."""

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
"""The size of the decoded body, which is more than the limit of 32 MiB for a response."""


@cache
def compressed_response(*, twice: bool) -> Fault:
    """Return a response that is small, but decodes to a valid empty list followed by many spaces.

    Args:
        twice: the body is compressed two times.
    """
    body = gzip.compress(b'{"success":true,"result":[],"nodes":[],"users":[]}'.ljust(DECODED_BYTES), compresslevel=1)
    if twice:
        body = gzip.compress(body)
    return answer(200, body, headers={"Content-Encoding": "gzip, gzip" if twice else "gzip"})


@contextmanager
def failing_output(random: Random, events: list[Any]) -> Iterator[None]:
    """Log to a standard output that cannot be written, and still append each event to the list."""
    reader, writer = os.pipe()
    kind = random.choice(("broken pipe", "full disk", "stuck pipe", "closed"))
    if kind == "full disk":
        full = os.open("/dev/full", os.O_WRONLY)
        os.dup2(full, writer)
        os.close(full)
    elif kind == "stuck pipe":
        # A write fails instead of blocking, so that tests do not wait for it.
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

    outputs = logs._outputs  # noqa: SLF001 - the log keeps one output for each stream
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
        # The thread that writes must finish before another file gets the number of its descriptor.
        os.close(reader)
        logs.flush_logs(timeout_s=10.0)
        with suppress(OSError):
            stream.close()
        os.close(writer)
        sys.stdout = previous_stdout
        outputs.clear()
        outputs.update(previous_outputs)
        structlog.configure(**config)
