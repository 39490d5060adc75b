"""A process that has imported the program, and forks once for each command: a run costs 20 ms instead of 600.

Reads one job a line, as JSON, on standard input; answers `{"pid": …}`, and at its end `{"status": …, "rss": …}`.
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
    from lifecycle.runtime import termination  # noqa: PLC0415 - imported by now

    os.environ.clear()
    os.environ.update(job["environment"])
    os.chdir(job["folder"])
    said = os.open(job["said"], os.O_WRONLY)
    os.dup2(said, 1)
    os.dup2(said, 2)
    # Those of before remember what kind of file they wrote to.
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
    # Where the kubelet would put it; a test cannot have /dev.
    termination.TERMINATION_LOG = Path(job["last_words"])
    sys.argv = ["lifecycle", *job["arguments"]]
    status = 70
    try:
        status = main()
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 70
    except BaseException:  # noqa: BLE001 - what the interpreter would show, the test is to see
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _answer(**values: int) -> None:
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


def serve() -> None:
    """Run the jobs, one after another."""
    import lifecycle.cleanup.run  # noqa: PLC0415
    import lifecycle.cli  # noqa: PLC0415
    import lifecycle.dns_watch.loop  # noqa: PLC0415
    import lifecycle.report.output  # noqa: F401, PLC0415

    for line in sys.stdin:
        job = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _child(job)
        _answer(pid=pid)
        _, status, usage = os.wait4(pid, 0)
        # Linux counts it in KiB.
        _answer(status=os.waitstatus_to_exitcode(status), rss=usage.ru_maxrss * 1024)


if __name__ == "__main__":
    serve()
