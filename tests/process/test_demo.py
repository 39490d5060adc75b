"""The story that newcomers are shown really happens, and says so when it does not."""

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


def test_the_whole_story_happens(repository: Path, clean_environment: dict[str, str]) -> None:
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
    assert "Ann's laptop is still there" in done.stdout


def test_a_step_that_does_not_happen_ends_the_story(demo: ModuleType, tmp_path: Path) -> None:
    """Cloudflare refuses every write: the record of the dead pod stays, and the demo does not pass over it."""
    world = demo.World(tmp_path, patience_s=0.5)
    world.cloudflare.faults.add(faults.html(503), method="DELETE", times=None)
    with world.served(), pytest.raises(demo.DemoError, match="the record that pointed at it is gone"):
        demo.play(world)
