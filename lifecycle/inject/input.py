"""Read the input of `inject`: the manifests, and the settings that all workloads share."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from lifecycle.domain.errors import ManifestError
from lifecycle.inject.rules import Site
from lifecycle.settings.load import settings_to_pass_on
from lifecycle.settings.models import InjectSettings, site_variables


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


def site_from_settings(settings: InjectSettings) -> Site:
    """Return the values of the settings that are the same for all workloads."""
    return Site(
        domain=settings.domain_name,
        login_server=settings.login_server,
        settings={**settings_to_pass_on(site_variables()), "DOMAIN_NAME": settings.domain_name},
        lifecycle_image=settings.lifecycle_image,
        tailscale_image=settings.tailscale_image,
    )
