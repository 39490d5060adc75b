"""Test scripts/try-headscale, which compares a new Headscale program with the simulator."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

from tests.pages import blocks
from tests.real.programs import Release

ROOT = Path(__file__).parents[2]

PROGRAM_WITH_RENAMED_FIELD = """\
#!{python}
import os, socket, subprocess, sys, threading, re

def relay(source, target, change):
    while data := source.recv(65536):
        target.sendall(change(data))
    target.shutdown(socket.SHUT_WR)

if "serve" not in sys.argv:
    os.execv("{program}", ["{program}", *sys.argv[1:]])
path = sys.argv[sys.argv.index("--config") + 1]
text = open(path).read()
port = int(re.search(r"^listen_addr: 127.0.0.1:(\\d+)", text, re.MULTILINE)[1])
changed = path + ".changed.yaml"
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    inner = free.getsockname()[1]
open(changed, "w").write(text.replace(f"\\nlisten_addr: 127.0.0.1:{{port}}", f"\\nlisten_addr: 127.0.0.1:{{inner}}"))
server = subprocess.Popen(["{program}", "--config", changed, "serve"])
threading.Thread(target=lambda: os._exit(server.wait()), daemon=True).start()
with socket.create_server(("127.0.0.1", port)) as listener:
    while True:
        client, _ = listener.accept()
        try:
            upstream = socket.create_connection(("127.0.0.1", inner))
        except OSError:
            client.close()
            continue
        for pair in ((client, upstream, lambda data: data),
                     (upstream, client, lambda data: data.replace(b'"givenName"', b'"givenNamX"'))):
            threading.Thread(target=relay, args=pair, daemon=True).start()
"""
"""A program that runs the real one behind a proxy, which renames a field in each response.

Both names of the field have the same length, so the header Content-Length stays valid.
"""


def try_headscale(program: Path, release: Release) -> subprocess.CompletedProcess[str]:
    """Run the script with a Headscale program, and with the Tailscale client of a release."""
    path = os.pathsep.join([str(release.tailscale.parent), os.environ["PATH"]])
    return subprocess.run(
        [ROOT / "scripts/try-headscale", program],
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


def test_matching_program_is_accepted(releases: list[Release]) -> None:
    done = try_headscale(releases[0].headscale, releases[0])
    assert done.returncode == 0, done.stdout + done.stderr


def test_renamed_field_is_reported(releases: list[Release], temporary_folder: Path) -> None:
    program = temporary_folder / "headscale"
    program.write_text(PROGRAM_WITH_RENAMED_FIELD.format(python=sys.executable, program=releases[-1].headscale))
    program.chmod(0o755)
    done = try_headscale(program, releases[-1])
    assert done.returncode == 1, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    page = (ROOT / "docs/releasing.md").read_text()
    (example,) = [dedent(block.text).splitlines() for block in blocks(page) if block.language == "text"]
    start = lines.index(example[0])
    assert lines[start : start + len(example)] == example


def test_missing_program_is_reported(releases: list[Release], temporary_folder: Path) -> None:
    done = try_headscale(temporary_folder / "headscale", releases[0])
    assert (done.returncode, done.stdout) == (2, "")
    assert "headscale is not an executable program" in done.stderr
