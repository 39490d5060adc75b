"""Create clients that can write to Headscale, Cloudflare, the key file and Kubernetes Events."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import tenacity

from lifecycle.apply import EventRecorder, Writers
from lifecycle.clients.cloudflare.writer import CloudflareWriter
from lifecycle.clients.headscale.writer import HeadscaleWriter
from lifecycle.keyfile.writer import KeyFileWriter
from lifecycle.runtime.logs import listening
from lifecycle.settings.models import Settings
from lifecycle.wiring.readers import open_upstreams

if TYPE_CHECKING:
    from lifecycle.clients.kubernetes.api import Cluster
    from lifecycle.clients.kubernetes.events import EventWriter

# Before a command ends, it waits at most this time until its last Kubernetes Events are written.
_FLUSH_S = 0.5


def connect_writers(
    settings: Settings,
    policy: tenacity.Retrying,
    stack: ExitStack,
    cluster: Cluster | None,
    *,
    on_outcome: Callable[[str, str], None] = lambda _upstream, _outcome: None,
) -> Writers:
    """Return clients that can read and write; no request is sent yet.

    The module `readers` describes the first four arguments, and `open_upstreams` describes `on_outcome`.
    """
    headscale, cloudflare = open_upstreams(settings, stack, cluster, on_outcome)
    return Writers(
        HeadscaleWriter(headscale, policy),
        CloudflareWriter(cloudflare, domain=settings.domain_name, zone_id=settings.cloudflare_zone_id),
        KeyFileWriter(settings.authkey_output_path, int(settings.authkey_file_mode, 8)),
    )


@contextmanager
def writing_kubernetes_events(settings: Settings) -> Iterator[None]:
    """With KUBERNETES_EVENTS=true, write Kubernetes Events for the events that are logged in the `with` block.

    A failure to write an Event is only logged.
    """
    if not settings.kubernetes_events:
        yield
        return

    def connect() -> EventWriter:
        from lifecycle.clients.kubernetes.access import find_access  # noqa: PLC0415 - most pods do not need it
        from lifecycle.clients.kubernetes.events import EventWriter  # noqa: PLC0415

        access = find_access(needed_for="KUBERNETES_EVENTS", may_use_kubeconfig=False, timeout=settings.http_timeout)
        return EventWriter(access, timeout=settings.http_timeout)

    recorder = EventRecorder(connect)
    with listening(recorder.record):
        try:
            yield
        finally:
            recorder.flush(_FLUSH_S)
