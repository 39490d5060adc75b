"""PID and mount namespaces whose processes and mounts end together."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.pod.network import eventually


@contextmanager
def private_init(*within: str) -> Iterator[int]:
    """Start an init process in new PID and mount namespaces, and yield its process id.

    It reaps the processes that are started in the namespaces, and they end with it. Mounts are not visible outside.

    Args:
        within: prefix of the command, such as one that enters a network namespace.
    """
    outer = subprocess.Popen(
        [
            *within,
            *("unshare", "--pid", "--fork", "--mount-proc", "--propagation", "private"),
            *("catatonit", "--", "sleep", "inf"),
        ],
        stderr=subprocess.DEVNULL,
    )
    children = Path(f"/proc/{outer.pid}/task/{outer.pid}/children")
    try:
        init = int(eventually(children.read_text, "an init").split()[0])
        eventually(lambda: Path(f"/proc/{init}/comm").read_text().strip() == "catatonit", "catatonit")
        yield init
    finally:
        for child in children.read_text().split():
            os.kill(int(child), 9)
        outer.wait()
