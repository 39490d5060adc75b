"""Clients that can write."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING

import tenacity

from lifecycle.apply import Writers
from lifecycle.clients.cloudflare.writer import CloudflareWriter
from lifecycle.clients.headscale.writer import HeadscaleWriter
from lifecycle.keyfile.writer import KeyFileWriter
from lifecycle.settings.models import Settings
from lifecycle.wiring.readers import open_upstreams

if TYPE_CHECKING:
    from lifecycle.clients.kubernetes.api import Cluster


def connect_writers(
    settings: Settings,
    policy: tenacity.Retrying,
    stack: ExitStack,
    cluster: Cluster | None,
    *,
    observe: Callable[[str, str], None] = lambda _upstream, _outcome: None,
) -> Writers:
    """Return clients that can read and write; no request is sent yet.

    Args:
        policy: the retry policy for Headscale.
        observe: called after each request with the upstream and the outcome.

    Raises:
        ConfigError: a file of certificate authorities is malformed.
    """
    transport, zone = open_upstreams(settings, stack, cluster, observe)
    return Writers(
        HeadscaleWriter(transport, policy),
        CloudflareWriter(zone, domain=settings.domain_name, zone_id=settings.cloudflare_zone_id),
        KeyFileWriter(settings.authkey_output_path, settings.authkey_file_mode),
    )
