"""Test scripts/try-headscale, which compares a build of Headscale with the simulator."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from textwrap import dedent

from tests.pages import blocks
from tests.real.programs import Release

ROOT = Path(__file__).parents[2]


def try_headscale(program: Path, release: Release) -> subprocess.CompletedProcess[str]:
    """Run the script with the path of a Headscale program, and with the Tailscale client of a release."""
    path = os.pathsep.join([str(release.tailscale.parent), os.environ["PATH"]])
    return subprocess.run(
        [ROOT / "scripts/try-headscale", program],
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


def test_matching_program_is_accepted(releases: list[Release]) -> None:
    oldest = releases[0]
    done = try_headscale(oldest.headscale, oldest)
    assert done.returncode == 0, done.stdout + done.stderr


def test_renamed_field_is_reported_as_in_the_documentation(releases: list[Release], temporary_folder: Path) -> None:
    newest = releases[-1]
    program = temporary_folder / "headscale"
    # The name of the field is replaced in the program by a name of the same length.
    program.write_bytes(newest.headscale.read_bytes().replace(b"givenName", b"givenNamX"))
    program.chmod(0o755)
    done = try_headscale(program, newest)
    assert done.returncode == 1, done.stdout + done.stderr
    output = done.stdout.splitlines()
    page = (ROOT / "docs/releasing.md").read_text()
    (example,) = [dedent(block.text).splitlines() for block in blocks(page) if block.language == "text"]
    start = output.index(example[0])
    assert output[start : start + len(example)] == example


def test_missing_program_is_reported(releases: list[Release], temporary_folder: Path) -> None:
    done = try_headscale(temporary_folder / "headscale", releases[0])
    assert (done.returncode, done.stdout) == (2, "")
    assert "headscale is not an executable program" in done.stderr
