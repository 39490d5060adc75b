"""Run passes of `dns-watch` without pauses, and print the memory after a tenth of them and at the end."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path

from lifecycle.dns_watch.loop import DnsWatch, new_status
from lifecycle.runtime.clock import utc_now
from lifecycle.runtime.logs import configure_logs
from lifecycle.runtime.retry import once
from lifecycle.settings.load import load
from lifecycle.settings.models import DnsWatchSettings
from lifecycle.wiring.writers import connect_writers


def resident_mib(process: str = "self") -> float:
    """Return the resident memory of a process."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise ValueError("the process has ended")


def main(passes: int) -> None:
    """Run the passes. The log goes to standard output, the memory in MiB to standard error."""
    settings = load(DnsWatchSettings)
    configure_logs(console=False)
    with ExitStack() as stack:
        status = new_status(settings)
        writers = connect_writers(settings, once(), stack, None, observe=status.count_request)
        watch = DnsWatch(settings, writers=writers, interface=lambda: None, now=utc_now, status=status)
        for number in range(1, passes + 1):
            watch.run_pass()
            if number in (passes // 10, passes):
                print(resident_mib(), file=sys.stderr)


if __name__ == "__main__":
    main(int(sys.argv[1]))
