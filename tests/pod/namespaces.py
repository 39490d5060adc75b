"""Create private PID and mount namespaces. When their init process ends, the kernel ends their processes and mounts."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.pod.network import eventually


@contextmanager
def private_init(*prefix: str) -> Iterator[int]:
    """Start an init process in new PID and mount namespaces, and yield its process id.

    The init process reaps all processes in the namespaces. Mounts are not visible outside.

    Args:
        prefix: the start of the command line, such as `nsenter --net=...`, which runs the rest of the command line.
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
        init = int(eventually(children.read_text, "the init process").split()[0])
        eventually(lambda: Path(f"/proc/{init}/comm").read_text().strip() == "catatonit", "catatonit to start")
        yield init
    finally:
        for child in children.read_text().split():
            os.kill(int(child), signal.SIGKILL)
        unshare.wait()
