"""Runs tests against mutants of the program, in forks of a process that has already imported the libraries.

This saves time, because the import of the libraries takes longer than most tests.

The server reads one job per line of standard input, as JSON: the `code`, and the `folder` in which it runs and from
which it imports the mutant. For each job, it writes a line of JSON: the exit `status` of the code, and its `output`.
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
    """Run the code of a job, and return its exit status."""
    sys.path.insert(0, job["folder"])
    os.chdir(job["folder"])
    try:
        exec(job["code"], {})
    except SystemExit as error:
        return int(error.code or 0)
    except BaseException:  # noqa: BLE001 - print any error, as the interpreter does
        traceback.print_exc()
        return 70  # not 1, with which pytest reports a failed test
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


def main() -> None:
    """Run the jobs one after another."""
    for library in LIBRARIES:
        importlib.import_module(library)
    for line in sys.stdin:
        reader, writer = os.pipe()
        if os.fork() == 0:
            os.dup2(writer, 1)
            os.dup2(writer, 2)
            # The inherited objects still have the buffering mode of the files that `dup2` has replaced.
            sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
            os._exit(run(json.loads(line)))
        os.close(writer)
        with os.fdopen(reader) as output:
            text = output.read()
        _, status = os.wait()
        sys.stdout.write(json.dumps({"status": os.waitstatus_to_exitcode(status), "output": text}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
