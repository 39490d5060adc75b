"""Create private PID and mount namespaces. When the init process ends, the kernel removes the processes and mounts."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.real.programs import eventually


@contextmanager
def private_init(*prefix: str) -> Iterator[int]:
    """Start an init process in new PID and mount namespaces, and yield its process id.

    The init process reaps orphaned processes. Mounts are not visible outside.

    Args:
        prefix: a command that starts another command, such as `nsenter --net=...`.
    """
    unshare = subprocess.Popen(
        [
            *prefix,
            *("unshare", "--pid", "--fork", "--mount-proc", "--propagation", "private"),
            *("catatonit", "--", "sleep", "inf"),
        ],
        stderr=subprocess.DEVNULL,
    )
    children = Path(f"/proc/{unshare.pid}/task/{unshare.pid}/children")
    try:
        init = int(eventually(lambda: children.read_text() or None, "the init process").split()[0])
        eventually(lambda: Path(f"/proc/{init}/comm").read_text().strip() == "catatonit", "catatonit to start")
        yield init
    finally:
        for child in children.read_text().split():
            os.kill(int(child), signal.SIGKILL)
        unshare.wait()
