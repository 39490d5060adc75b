"""Every client, built from the settings: both services, the Kubernetes API, and what reads tailscale's state Secret."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

import httpx
import tenacity

import lifecycle
from lifecycle.clients import cloudflare as cloudflare_api
from lifecycle.clients.cloudflare import Cloudflare
from lifecycle.clients.headscale import dialect
from lifecycle.clients.headscale.client import Headscale
from lifecycle.clients.headscale.http import HttpTransport
from lifecycle.clients.headscale.transport import Transport
from lifecycle.clients.http import Credential, JsonClient
from lifecycle.errors import ConfigError
from lifecycle.settings import CleanupSettings, Settings

if TYPE_CHECKING:
    from lifecycle.clients.cluster import Cluster

# Ours are given up before the server closes them.
# Source: Headscale's HTTP server, whose read and write time-outs are 30 s; it closes what was idle for as long.
_KEEPALIVE_S = 20.0


def utc_now() -> datetime:
    """This moment, aware."""
    return datetime.now(UTC)


def connect(
    settings: Settings,
    policy: tenacity.Retrying,
    stack: ExitStack,
    cluster: Cluster | None,
    *,
    observe: Callable[[str, str], None] = lambda _service, _outcome: None,
) -> tuple[Headscale, Cloudflare]:
    """Both services, their connections closed with the stack.

    Args:
        policy: how often Headscale is asked again.
        stack: closes the connections.
        cluster: the Kubernetes API, where it is needed.
        observe: told of each request that ended: the service, and the outcome in a word.

    Returns:
        Headscale, over exec or HTTP as the settings say, and Cloudflare; nothing was sent yet.

    Raises:
        ConfigError: HEADSCALE_CA_FILE holds no certificate authority.
    """
    default_trust = httpx.create_ssl_context()
    cloudflare = JsonClient(
        _http_client(settings.cloudflare_api_url, default_trust, stack),
        service=cloudflare_api.SERVICE,
        address="CLOUDFLARE_API_URL",
        credential=Credential(partial(settings.secret, "CLOUDFLARE_API_TOKEN"), name="CLOUDFLARE_API_TOKEN"),
        timeout=settings.http_timeout,
        explain=cloudflare_api.explain,
        observe=partial(observe, cloudflare_api.SERVICE),
    )
    seen = partial(observe, dialect.SERVICE)
    if settings.access == "exec" and cluster is not None:
        transport = _exec_transport(settings, cluster, seen)
    else:
        transport = HttpTransport(_headscale_client(settings, default_trust, stack, cluster, seen))
    return (
        Headscale(transport, policy),
        Cloudflare(cloudflare, domain=settings.domain_name, zone_id=settings.cloudflare_zone_id),
    )


def _http_client(url: str, trust: ssl.SSLContext, stack: ExitStack) -> httpx.Client:
    return stack.enter_context(
        httpx.Client(
            base_url=url,
            verify=trust,
            limits=httpx.Limits(keepalive_expiry=_KEEPALIVE_S),
            headers={"User-Agent": f"tailscale-lifecycle/{lifecycle.__version__}"},
        )
    )


def _headscale_client(
    settings: Settings,
    trust: ssl.SSLContext,
    stack: ExitStack,
    cluster: Cluster | None,
    observe: Callable[[str], None],
) -> JsonClient:
    if settings.headscale_ca_file:
        try:
            trust = httpx.create_ssl_context()
            trust.load_verify_locations(cafile=settings.headscale_ca_file)
        except OSError as error:
            raise ConfigError(f"HEADSCALE_CA_FILE: it holds no certificate authority ({error.strerror})") from error
    credential = Credential(partial(settings.secret, "HEADSCALE_API_KEY"), name="HEADSCALE_API_KEY")
    if settings.headscale_api_key_secret is not None and cluster is not None:
        # Read when it is first needed, and again when Headscale refuses it.
        read = partial(cluster.token, settings.headscale_namespace, settings.headscale_api_key_secret)
        credential = Credential(read, name="HEADSCALE_API_KEY_SECRET")
    return JsonClient(
        _http_client(settings.headscale_address, trust, stack),
        service=dialect.SERVICE,
        address="HEADSCALE_URL",
        credential=credential,
        timeout=settings.http_timeout,
        explain=dialect.explain,
        observe=observe,
    )


def connect_cluster(settings: Settings, stack: ExitStack, *, only_reads: bool = False) -> Cluster | None:
    """The Kubernetes API, where a setting needs it; a kubeconfig serves a command that only reads.

    Raises:
        ConfigError: it is needed, and there is no way to it.
    """
    if not settings.uses_kubernetes:
        return None
    # By these settings alone: what it costs in time and memory, `scripts/bench` shows as exec's.
    from lifecycle.clients import cluster  # noqa: PLC0415

    connect = cluster.in_cluster_or_kubeconfig if only_reads else cluster.in_cluster
    if settings.access == "exec":
        needed_for = "HEADSCALE_ACCESS"
    else:
        needed_for = "HEADSCALE_API_KEY_SECRET" if settings.headscale_api_key_secret else "NODE_POLICY"
    return stack.enter_context(connect(needed_for=needed_for, timeout=settings.http_timeout))


def _exec_transport(settings: Settings, cluster: Cluster, observe: Callable[[str], None]) -> Transport:
    from lifecycle.clients.headscale.exec import ExecTransport, HeadscalePod  # noqa: PLC0415 - as above

    pod = HeadscalePod(
        cluster,
        namespace=settings.headscale_namespace,
        selector=settings.headscale_pod_selector,
        container=settings.headscale_container,
    )
    return ExecTransport(pod, now=utc_now, observe=observe)


def state_reader(
    settings: CleanupSettings, policy: tenacity.Retrying, cluster: Cluster | None
) -> Callable[[], Mapping[str, bytes] | None] | None:
    """What reads tailscale's state Secret.

    Args:
        policy: how often it is tried again.
        cluster: the Kubernetes API, where it is needed.

    Returns:
        None unless NODE_POLICY=keep: no node is to stay, and no Secret is read.
    """
    name = settings.ts_kube_secret
    if settings.node_policy != "keep" or cluster is None or name is None:
        return None
    from lifecycle.clients.cluster import StateSecret  # noqa: PLC0415 - as above

    return StateSecret(cluster, namespace=settings.namespace, name=name, retrying=policy).read
