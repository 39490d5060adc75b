"""Run the program in forks of a process that has imported its modules. The imports take longer than most commands.

Jobs arrive on a socket, whose file descriptor is the argument of this script. Each message is a job as JSON, with three
file descriptors: standard output, standard error, and a pipe for the result. The first line of the result is the
process id. The second line is the exit status and the peak memory in bytes.

The keys of a job are `arguments`, `environment`, `folder` (the working directory), `service_account` (the folder to
mount as the service account, or "") and `termination_log` (the path to use instead of /dev/termination-log).
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import signal
import socket
import sys
import traceback
from pathlib import Path
from typing import Any

# A command imports these modules only when it needs them. The server imports all of them before it forks.
MODULES = (
    "lifecycle.cleanup.run",
    "lifecycle.cli",
    "lifecycle.clients.headscale.exec",
    "lifecycle.clients.interface",
    "lifecycle.clients.kubernetes.access",
    "lifecycle.dns_watch.loop",
    "lifecycle.dry_run",
    "lifecycle.health.server",
    "lifecycle.prune.run",
    "lifecycle.report",
)
SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
MAX_JOB_BYTES = 1 << 17

# Source: <linux/sched.h> and <linux/mount.h>.
CLONE_NEWNS, CLONE_NEWUSER = 0x00020000, 0x10000000
MS_BIND, MS_REC, MS_PRIVATE = 0x1000, 0x4000, 0x40000


def _mount_service_account(folder: str) -> None:
    """Enter a new mount namespace, and mount a folder where the kubelet mounts the service account."""
    libc = ctypes.CDLL(None, use_errno=True)

    def call(name: str, *arguments: Any) -> None:
        if getattr(libc, name)(*arguments) != 0:
            raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")

    # The new user namespace makes the mounts possible without root, if the machine allows such namespaces.
    ids = {"uid_map": f"0 {os.getuid()} 1", "gid_map": f"0 {os.getgid()} 1"}
    call("unshare", CLONE_NEWUSER | CLONE_NEWNS)
    for name, text in {"setgroups": "deny", **ids}.items():
        Path("/proc/self", name).write_text(text)
    call("mount", b"none", b"/", None, MS_REC | MS_PRIVATE, None)
    call("mount", b"none", b"/var/run", b"tmpfs", 0, None)
    SERVICE_ACCOUNT.mkdir(parents=True)
    call("mount", folder.encode(), str(SERVICE_ACCOUNT).encode(), None, MS_BIND, None)


def _run_program(job: dict[str, Any]) -> int:
    """Run the program and return its exit status."""
    from lifecycle.__main__ import main  # noqa: PLC0415 - the parent has imported it
    from lifecycle.runtime import termination  # noqa: PLC0415

    try:
        if job["service_account"]:
            _mount_service_account(job["service_account"])
        os.environ.clear()
        os.environ.update(job["environment"])
        os.chdir(job["folder"])
        # The kubelet mounts the termination log in /dev, where a test cannot write.
        termination.TERMINATION_LOG = Path(job["termination_log"])
        sys.argv = ["lifecycle", *job["arguments"]]
        return main()
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 1
    except BaseException:  # noqa: BLE001 - as in the interpreter, any error is printed
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def _run_job(job: dict[str, Any], stdout_fd: int, stderr_fd: int, result_fd: int) -> None:
    """Run the program as a child process, and write its result to `result_fd`."""
    pid = os.fork()
    if pid == 0:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(stdout_fd, 1)
        os.dup2(stderr_fd, 2)
        os.closerange(3, 256)
        # The inherited stream objects keep the buffering mode of the server's standard output and error.
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        os._exit(_run_program(job))
    os.close(stdout_fd)
    os.close(stderr_fd)
    os.write(result_fd, f"{pid}\n".encode())
    _, status, usage = os.wait4(pid, 0)
    # Linux reports the peak memory in KiB.
    os.write(result_fd, f"{os.waitstatus_to_exitcode(status)} {usage.ru_maxrss * 1024}\n".encode())
    os._exit(0)


def serve(descriptor: int) -> None:
    """Run the jobs concurrently until the socket is closed."""
    for module in MODULES:
        importlib.import_module(module)
    jobs = socket.socket(fileno=descriptor)
    # Linux then removes ended child processes although the server does not call wait().
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        text, files, _, _ = socket.recv_fds(jobs, MAX_JOB_BYTES, 3)
        if not text:
            return
        if os.fork() == 0:
            # `_run_job` waits for its child process.
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _run_job(json.loads(text), *files)
        for file in files:
            os.close(file)


if __name__ == "__main__":
    serve(int(sys.argv[1]))
