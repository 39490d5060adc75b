"""Run a number of passes of `dns-watch` without pauses, and print the resident memory of this process.

The memory is printed after a tenth of the passes and after all passes, to show whether it grows. scripts/bench.py runs
this file as a process.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from lifecycle.dns_watch.loop import DnsWatch, new_status
from lifecycle.runtime.clock import utc_now
from lifecycle.runtime.logs import configure_logs
from lifecycle.runtime.retry import no_retries
from lifecycle.settings.load import load
from lifecycle.settings.models import DnsWatchSettings
from lifecycle.wiring.writers import connect_writers


@dataclass(frozen=True, slots=True)
class Usage:
    """The resources that a process uses.

    Attributes:
        resident_mib: its resident memory (RSS) now.
        unique_mib: the part of the resident memory that no other process shares (USS).
        cpu_s: the CPU time of all threads since its start.
        wake_ups: the voluntary context switches of all threads since its start.
    """

    resident_mib: float
    unique_mib: float
    cpu_s: float
    wake_ups: int


def usage(process: int | str) -> Usage:
    """Return the resources that a process uses. The argument is the process id, or "self" for this process."""
    folder = Path("/proc", str(process))
    kib = dict(line.split()[:2] for line in (folder / "smaps_rollup").read_text().splitlines()[1:])
    cpu_ns = wake_ups = 0
    for task in (folder / "task").iterdir():
        cpu_ns += int((task / "schedstat").read_text().split()[0])
        wake_ups += int((task / "status").read_text().partition("\nvoluntary_ctxt_switches:")[2].split()[0])
    unique_kib = int(kib["Private_Clean:"]) + int(kib["Private_Dirty:"])
    return Usage(int(kib["Rss:"]) / 1024, unique_kib / 1024, cpu_ns / 1e9, wake_ups)


def main(passes: int) -> None:
    """Run the passes. Write the log to standard output, and the memory in MiB to standard error."""
    settings = load(DnsWatchSettings)
    configure_logs(console=False)
    with ExitStack() as stack:
        status = new_status(settings)
        writers = connect_writers(settings, no_retries(), stack, None, on_outcome=status.count_request)
        watch = DnsWatch(settings, writers=writers, interface=lambda: None, now=utc_now, status=status)
        for number in range(1, passes + 1):
            watch.run_pass()
            if number in (passes // 10, passes):
                print(usage("self").resident_mib, file=sys.stderr)


if __name__ == "__main__":
    main(int(sys.argv[1]))
