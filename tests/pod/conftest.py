"""What the tests of the pod need of the machine they run on."""

from __future__ import annotations

import os
import shutil
import sys

import pytest


def needs(*commands: str) -> None:
    """Skip where root or a command is missing, and say how to come by it."""
    missing = [command for command in commands if shutil.which(command) is None]
    if sys.platform != "linux" or os.geteuid() != 0 or missing:
        pytest.skip(f"needs root on Linux and {', '.join(missing or commands)}: as root, scripts/bootstrap --system")
