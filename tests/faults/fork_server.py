"""Run programs in forks of one process that has imported the libraries, which takes longer than most programs.

Reads one job per line of standard input, as JSON: `folder`, which is searched first for modules, and `code`. Writes
`status` and `output` of each.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
from typing import Any

LIBRARIES = (
    "httpx",
    "prometheus_client",
    "pydantic",
    "pydantic_settings",
    "pytest",
    "structlog",
    "tenacity",
    "werkzeug",
)


def run(job: dict[str, Any]) -> int:
    """Run a program, and return its exit status."""
    sys.path.insert(0, job["folder"])
    os.chdir(job["folder"])
    try:
        exec(job["code"], {})
    except SystemExit as error:
        return int(error.code or 0)
    except BaseException:  # noqa: BLE001 - as the interpreter does
        traceback.print_exc()
        return 70
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


def main() -> None:
    """Run the jobs one after another."""
    for library in LIBRARIES:
        importlib.import_module(library)
    for line in sys.stdin:
        ours, its = os.pipe()
        if os.fork() == 0:
            os.dup2(its, 1)
            os.dup2(its, 2)
            # The inherited streams assume that their descriptors are still the same files.
            sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
            os._exit(run(json.loads(line)))
        os.close(its)
        with os.fdopen(ours) as output:
            text = output.read()
        _, status = os.wait()
        sys.stdout.write(json.dumps({"status": os.waitstatus_to_exitcode(status), "output": text}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
