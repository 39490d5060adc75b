"""Test that all steps of scripts/demo succeed, and that a step without the expected effect fails the demo."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.simulators import faults


@pytest.fixture(scope="module")
def demo(repository: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("demo", repository / "scripts" / "demo.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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


def test_failed_step_fails_the_demo(demo: ModuleType, tmp_path: Path) -> None:
    """Cloudflare refuses every deletion, so the stale record stays."""
    world = demo.World(tmp_path, timeout_s=0.5)
    world.cloudflare.faults.add(faults.html(503), method="DELETE", times=None)
    with world.served(), pytest.raises(demo.DemoError):
        demo.run_steps(world)
    assert len(world.addresses()) == 1
