"""Detect a mount point, which cannot be replaced by renaming a file over it."""

from __future__ import annotations

import os
import re
from pathlib import Path

_ESCAPE = re.compile(rb"\\([0-7]{3})")


def is_mount_point(path: Path, mounts: Path = Path("/proc/self/mountinfo")) -> bool:
    """Return True if something is mounted at the path; False if the mounts cannot be read."""
    # Path.is_mount() does not detect a file that is mounted from the same file system.
    target = os.fsencode(path.parent.resolve() / path.name)
    try:
        lines = mounts.read_bytes().splitlines()
    except OSError:
        return False
    # Source: proc_pid_mountinfo(5). The fifth field is the mount point, with some characters as octal escapes.
    return any(_ESCAPE.sub(_unescape, line.split(b" ")[4]) == target for line in lines)


def _unescape(match: re.Match[bytes]) -> bytes:
    return bytes([int(match[1], 8)])
