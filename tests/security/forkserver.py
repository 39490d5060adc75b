"""A process that imports the program once and forks for each command, so that a run takes 20 ms instead of 600.

It reads one job per line as JSON from standard input. It writes `{"pid": …}` when the command starts, and
`{"status": …, "rss": …}` when it ends.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any


def _child(job: dict[str, Any]) -> None:
    from lifecycle.__main__ import main  # noqa: PLC0415
    from lifecycle.runtime import termination  # noqa: PLC0415 - already imported by the parent

    os.environ.clear()
    os.environ.update(job["environment"])
    os.chdir(job["folder"])
    output = os.open(job["output"], os.O_WRONLY)
    os.dup2(output, 1)
    os.dup2(output, 2)
    # The inherited streams have cached properties of the previous files.
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
    # The kubelet mounts the termination log in /dev, where a test cannot write.
    termination.TERMINATION_LOG = Path(job["termination_log"])
    sys.argv = ["lifecycle", *job["arguments"]]
    status = 70
    try:
        status = main()
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 70
    except BaseException:  # noqa: BLE001 - tests check for the traceback, as the interpreter prints it
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _send(**values: int) -> None:
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


def serve() -> None:
    """Run the jobs sequentially."""
    import lifecycle.cleanup.run  # noqa: PLC0415
    import lifecycle.cli  # noqa: PLC0415
    import lifecycle.dns_watch.loop  # noqa: PLC0415
    import lifecycle.report  # noqa: F401, PLC0415

    for line in sys.stdin:
        job = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _child(job)
        _send(pid=pid)
        _, status, usage = os.wait4(pid, 0)
        # Linux reports KiB.
        _send(status=os.waitstatus_to_exitcode(status), rss=usage.ru_maxrss * 1024)


if __name__ == "__main__":
    serve()
