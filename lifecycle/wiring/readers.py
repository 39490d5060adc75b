"""Create clients that can only read, and the connections of all clients, including those in `writers`.

The functions have these arguments in common:

- `settings`: the settings of the command.
- `policy`: the retry policy for Headscale, or in `state_reader` for the Kubernetes API.
- `stack`: closes the connections when it is closed.
- `cluster`: the client of the Kubernetes API; None unless the settings need a `Cluster`.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

import tenacity

from lifecycle.clients.cloudflare.errors import CLOUDFLARE
from lifecycle.clients.cloudflare.reader import CloudflareReader
from lifecycle.clients.headscale.errors import HEADSCALE
from lifecycle.clients.headscale.http import HttpTransport
from lifecycle.clients.headscale.reader import HeadscaleSnapshot, HeadscaleTransport
from lifecycle.clients.http import HttpClient
from lifecycle.clients.json_client import JsonClient
from lifecycle.clients.transport import open_http
from lifecycle.clients.trust import add_authorities, public_trust
from lifecycle.clients.upstream import Upstream
from lifecycle.domain.proxy import Proxy
from lifecycle.keyfile.reader import KeyFileReader
from lifecycle.readers import Readers
from lifecycle.runtime.clock import utc_now
from lifecycle.runtime.retry import no_retries
from lifecycle.settings.models import CleanupSettings, Settings

if TYPE_CHECKING:
    from lifecycle.clients.kubernetes.api import Cluster


def connect_readers(settings: Settings, stack: ExitStack, cluster: Cluster | None) -> Readers:
    """Return clients that can only read, and that do not retry; no request is sent yet."""
    headscale, cloudflare = open_upstreams(settings, stack, cluster, lambda _upstream, _outcome: None)
    return Readers(
        HeadscaleSnapshot(headscale, no_retries()),
        CloudflareReader(cloudflare, domain=settings.domain_name, zone_id=settings.cloudflare_zone_id),
        KeyFileReader(settings.authkey_output_path),
    )


def open_upstreams(
    settings: Settings, stack: ExitStack, cluster: Cluster | None, on_outcome: Callable[[str, str], None]
) -> tuple[HeadscaleTransport, JsonClient]:
    """Return the transport to Headscale and the client of Cloudflare's API; no request is sent yet.

    Args:
        on_outcome: called after each request with two names, such as "Headscale" and "ok".
    """
    trust = _trust(settings)

    def connect(upstream: Upstream, url: str, proxy: Proxy | None, read_token: Callable[[], str]) -> JsonClient:
        http = stack.enter_context(open_http(url, trust=trust, proxy=proxy))
        return JsonClient(
            HttpClient(http, upstream=upstream, timeout=settings.http_timeout, proxy=proxy),
            read_token=read_token,
            on_outcome=partial(on_outcome, upstream.name),
        )

    url = settings.cloudflare_api_url
    cloudflare = connect(CLOUDFLARE, url, settings.proxy_for(url), partial(settings.secret, "CLOUDFLARE_API_TOKEN"))
    if settings.access == "exec" and cluster is not None:
        return _exec_transport(settings, cluster, partial(on_outcome, HEADSCALE.name)), cloudflare
    if settings.headscale_ca_file:
        # A separate TLS context is created, because the private authority must not be trusted for Cloudflare.
        trust = _trust(settings)
        add_authorities(trust, settings.headscale_ca_file)
    read_key = partial(settings.secret, "HEADSCALE_API_KEY")
    if settings.headscale_api_key_secret and cluster is not None:
        read_key = partial(cluster.headscale_api_key, settings.headscale_namespace, settings.headscale_api_key_secret)
    headscale = connect(HEADSCALE, settings.effective_headscale_url, settings.proxy_of_headscale, read_key)
    return HttpTransport(headscale), cloudflare


def _trust(settings: Settings) -> ssl.SSLContext:
    """Return a context that trusts the authorities of SSL_CERT_FILE and SSL_CERT_DIR, or else the public ones."""
    if not settings.ssl_cert_file and not settings.ssl_cert_dir:
        return public_trust()
    return ssl.create_default_context(cafile=settings.ssl_cert_file, capath=settings.ssl_cert_dir)


def connect_cluster(settings: Settings, stack: ExitStack, *, only_reads: bool = False) -> Cluster | None:
    """Return a client of the Kubernetes API; None unless the settings need a `Cluster`.

    Args:
        only_reads: the command only reads, so it may use a kubeconfig; see `find_access`.

    Raises:
        ConfigError: the API is not available here.
    """
    needed_for = settings.cluster_needed_for
    if needed_for is None:
        return None
    # These imports are not at the top of the file, because they take time, and most pods do not need them.
    from lifecycle.clients.kubernetes.access import find_access  # noqa: PLC0415
    from lifecycle.clients.kubernetes.api import Cluster  # noqa: PLC0415

    access = find_access(
        needed_for=needed_for,
        may_use_kubeconfig=only_reads,
        timeout=settings.http_timeout,
        proxy_for=settings.proxy_for,
        default_trust=partial(_trust, settings),
    )
    stack.enter_context(access.client)
    return Cluster(access, timeout=settings.http_timeout)


def _exec_transport(settings: Settings, cluster: Cluster, on_outcome: Callable[[str], None]) -> HeadscaleTransport:
    from lifecycle.clients.headscale.exec import ExecTransport  # noqa: PLC0415 - only needed with exec
    from lifecycle.clients.headscale.pod import HeadscalePod  # noqa: PLC0415

    pod = HeadscalePod(
        cluster,
        namespace=settings.headscale_namespace,
        selector=settings.headscale_pod_selector,
        container=settings.headscale_container,
    )
    return ExecTransport(pod, now=utc_now, on_outcome=on_outcome)


def state_reader(
    settings: CleanupSettings, policy: tenacity.Retrying, cluster: Cluster | None
) -> Callable[[], Mapping[str, bytes] | None] | None:
    """Return a function that reads the Secret with tailscale's state; None unless NODE_POLICY=keep."""
    name = settings.ts_kube_secret
    if settings.node_policy != "keep" or cluster is None or name is None:
        return None
    return partial(cluster.tailscale_state, settings.namespace, name, policy)
