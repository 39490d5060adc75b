"""Read the manifests to which `inject` adds containers."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from lifecycle.domain.errors import ManifestError


def read(files: Sequence[str]) -> list[str]:
    """Return the text of each file. The name "-" means standard input, which is also read if there are no names.

    Raises:
        ManifestError: a file cannot be read as UTF-8 text.
    """
    texts = []
    for file in files or ["-"]:
        try:
            if file == "-":
                # `sys.stdin` is None if standard input was closed when the process started.
                content = sys.stdin.buffer.read() if sys.stdin is not None else b""
            else:
                content = Path(file).read_bytes()
            texts.append(content.decode("utf-8-sig"))
        except OSError as error:
            raise ManifestError(f"{file}: cannot be read ({error.strerror})") from None
        except UnicodeDecodeError:
            raise ManifestError(f"{file}: is not UTF-8 text") from None
    return texts
