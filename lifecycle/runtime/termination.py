"""The container's termination message, which `kubectl describe pod` shows."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path

from lifecycle.domain.text import printable

# The kubelet's default `terminationMessagePath`.
TERMINATION_LOG = Path("/dev/termination-log")

# Source: Kubernetes, "Determine the Reason for Pod Failure": the kubelet cuts longer messages.
_MAX_BYTES = 4096


def write_termination_message(reason: str) -> None:
    """Write the reason to the termination log, if the kubelet has created that file.

    `lifecycle status` writes none: it runs in the container of dns-watch, with `kubectl exec`.
    """
    # Options can precede the command. `prune --name` can select a workload with the name `status`.
    is_status = "status" in sys.argv and "prune" not in sys.argv
    if is_status or not TERMINATION_LOG.is_file():
        return
    text = "\n".join(map(printable, reason.splitlines()))
    with suppress(OSError):
        TERMINATION_LOG.write_bytes(text.encode()[:_MAX_BYTES])
