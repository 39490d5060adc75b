"""Write generated files, or check that they are up to date. The scripts that scripts/generate runs use this module."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def write_or_check(files: dict[Path, str]) -> int:
    """Write the files, or with --check in sys.argv compare them with the existing files. Return the exit status.

    Args:
        files: the content of each file, by its path.
    """
    parser = argparse.ArgumentParser(prog="scripts/generate")
    parser.add_argument("--check", action="store_true", help="change nothing, and fail if a file is not up to date")
    options = parser.parse_args()
    stale = [path for path, text in files.items() if not path.exists() or path.read_text() != text]
    for path in stale:
        if options.check:
            print(f"{path} is not up to date: run scripts/generate", file=sys.stderr)
        else:
            path.parent.mkdir(exist_ok=True)
            path.write_text(files[path])
    return 1 if stale and options.check else 0
