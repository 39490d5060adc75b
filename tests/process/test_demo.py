"""Test that all steps of scripts/demo succeed, and that a step without the expected effect fails the demo."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import demo
import pytest

from tests.simulators import faults


def test_all_steps_succeed(repository: Path, clean_environment: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "scripts/demo.py"],
        cwd=repository,
        env=clean_environment | {"PYTHONPATH": "."},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_failed_step_fails_the_demo(tmp_path: Path) -> None:
    """Cloudflare refuses every deletion, so the stale record stays."""
    world = demo.World(tmp_path, timeout_s=0.5)
    world.cloudflare.faults.add(faults.html(503), method="DELETE", times=None)
    with world.served(), pytest.raises(demo.DemoError):
        demo.run_steps(world)
    assert len(world.addresses()) == 1
