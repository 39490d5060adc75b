"""Run a PostgreSQL server, in which each Headscale server of a test has its own database."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any, Final, Self

from tests.real.programs import BackgroundProcess, eventually, free_ports, run_program

_ROLE: Final = "postgres"
"""The database role, and the system account that runs PostgreSQL, because PostgreSQL refuses to run as root."""

_AS_POSTGRES: Final = ("setpriv", f"--reuid={_ROLE}", f"--regid={_ROLE}", "--clear-groups")

_VERSIONS_FOLDER: Final = Path("/usr/lib/postgresql")


def postgres_programs() -> Path | str:
    """Return the folder with the programs of the newest installed version, or a message that says what to install."""
    servers = sorted(_VERSIONS_FOLDER.glob("*/bin/postgres"), key=lambda program: int(program.parts[-3]))
    if not servers or os.getuid() != 0 or shutil.which("setpriv") is None:
        return "needs root, setpriv and postgres: install the packages postgresql and util-linux"
    return servers[-1].parent


class PostgresCluster:
    """A PostgreSQL cluster (one server with its databases) that listens on a loopback port.

    Args:
        programs: the folder with the programs of PostgreSQL.
        folder: an empty folder. PostgreSQL creates its socket there, so the path must be short.
    """

    def __init__(self, programs: Path, folder: Path) -> None:
        self._programs = programs
        self._folder = folder
        self._data = folder / "data"
        (self._port,) = free_ports(1)
        self._process: BackgroundProcess | None = None
        shutil.chown(folder, _ROLE)
        self._run_checked("initdb", "--pgdata", self._data, "--auth=trust", "--no-sync")

    def __enter__(self) -> Self:
        """Start the cluster."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the cluster."""
        self.stop()

    def start(self) -> None:
        """Start the cluster, and wait until it accepts connections."""
        process = self._process = BackgroundProcess(
            self._command(
                "postgres",
                *("-D", self._data, "-k", self._folder, "-h", "127.0.0.1", "-p", str(self._port)),
                # The data does not have to survive a crash of the machine.
                *("-c", "fsync=off"),
            ),
            log=self._folder.with_name(f"{self._folder.name}.log"),
            environment=self._environment(),
            folder=self._folder,
        )
        eventually(
            lambda: process.exit_status is not None or self._accepts_connections(),
            "PostgreSQL to accept connections",
            details=process.output,
        )
        assert process.exit_status is None, process.output()

    def stop(self) -> None:
        """Stop the cluster without waiting for its clients, which are disconnected."""
        if self._process is not None:
            self._process.stop(signal.SIGINT)

    def create_database(self, name: str) -> dict[str, Any]:
        """Create a database, and return the section of Headscale's configuration for this database."""
        self._run_checked("createdb", *self._connection_options(), name)
        connection = {"host": "127.0.0.1", "port": self._port, "name": name, "user": _ROLE, "pass": "", "ssl": False}
        return {"database": {"type": "postgres", "postgres": connection}}

    def _accepts_connections(self) -> bool:
        return self._run("pg_isready", *self._connection_options()).returncode == 0

    def _connection_options(self) -> tuple[str, ...]:
        return ("-h", "127.0.0.1", "-p", str(self._port))

    def _run_checked(self, program: str, *arguments: str | Path) -> None:
        done = self._run(program, *arguments)
        assert done.returncode == 0, done.stdout + done.stderr

    def _run(self, program: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return run_program(self._command(program, *arguments), environment=self._environment(), folder=self._folder)

    def _command(self, program: str, *arguments: str | Path) -> list[str | Path]:
        return [*_AS_POSTGRES, self._programs / program, *arguments]

    @staticmethod
    def _environment() -> dict[str, str]:
        return {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"}
