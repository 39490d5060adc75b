"""Every client, built from the settings: both services, the Kubernetes API, and what reads tailscale's state Secret."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

import httpx
import tenacity

import lifecycle
from lifecycle.apply import Writers
from lifecycle.clients.cloudflare import errors as cloudflare_errors
from lifecycle.clients.cloudflare.reader import CloudflareReader
from lifecycle.clients.cloudflare.writer import CloudflareWriter
from lifecycle.clients.headscale import errors as headscale_errors
from lifecycle.clients.headscale.http import HttpTransport
from lifecycle.clients.headscale.reader import HeadscaleReader
from lifecycle.clients.headscale.transport import Transport
from lifecycle.clients.headscale.writer import HeadscaleWriter
from lifecycle.clients.http import Credential, JsonClient
from lifecycle.domain.errors import ConfigError
from lifecycle.keyfile.reader import KeyFileReader
from lifecycle.keyfile.writer import KeyFileWriter
from lifecycle.settings.models import CleanupSettings, Settings

if TYPE_CHECKING:
    from lifecycle.clients.kubernetes.api import Cluster

# Ours are given up before the server closes them.
# Source: Headscale's HTTP server, whose read and write time-outs are 30 s; it closes what was idle for as long.
_KEEPALIVE_S = 20.0


@dataclass(frozen=True, slots=True)
class Readers:
    """Everything that a dry run reads."""

    headscale: HeadscaleReader
    cloudflare: CloudflareReader
    key_file: KeyFileReader


def utc_now() -> datetime:
    """This moment, aware."""
    return datetime.now(UTC)


def connect_readers(
    settings: Settings, policy: tenacity.Retrying, stack: ExitStack, cluster: Cluster | None
) -> Readers:
    """Return what a dry run needs: clients that can only read.

    Args and errors are those of `connect_writers`.
    """
    transport, zone = _connect(settings, stack, cluster, lambda _upstream, _outcome: None)
    return Readers(
        HeadscaleReader(transport, policy),
        CloudflareReader(zone, domain=settings.domain_name, zone_id=settings.cloudflare_zone_id),
        KeyFileReader(settings.authkey_output_path, settings.authkey_file_mode),
    )


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
        settings: of the command.
        policy: the retry policy for Headscale.
        stack: closes the connections.
        cluster: the Kubernetes API, if it is needed.
        observe: called after each request with the upstream and the outcome.

    Raises:
        ConfigError: HEADSCALE_CA_FILE contains no certificate.
    """
    transport, zone = _connect(settings, stack, cluster, observe)
    return Writers(
        HeadscaleWriter(transport, policy),
        CloudflareWriter(zone, domain=settings.domain_name, zone_id=settings.cloudflare_zone_id),
        KeyFileWriter(settings.authkey_output_path, settings.authkey_file_mode),
    )


def _connect(
    settings: Settings, stack: ExitStack, cluster: Cluster | None, observe: Callable[[str, str], None]
) -> tuple[Transport, JsonClient]:
    default_trust = httpx.create_ssl_context()
    cloudflare = JsonClient(
        _http_client(settings.cloudflare_api_url, default_trust, stack),
        upstream=cloudflare_errors.UPSTREAM,
        address="CLOUDFLARE_API_URL",
        credential=Credential(partial(settings.secret, "CLOUDFLARE_API_TOKEN"), name="CLOUDFLARE_API_TOKEN"),
        timeout=settings.http_timeout,
        explain=cloudflare_errors.explain,
        observe=partial(observe, cloudflare_errors.UPSTREAM),
    )
    seen = partial(observe, headscale_errors.UPSTREAM)
    if settings.access == "exec" and cluster is not None:
        return _exec_transport(settings, cluster, seen), cloudflare
    return HttpTransport(_headscale_client(settings, default_trust, stack, cluster, seen)), cloudflare


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
        upstream=headscale_errors.UPSTREAM,
        address="HEADSCALE_URL",
        credential=credential,
        timeout=settings.http_timeout,
        explain=headscale_errors.explain,
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
    from lifecycle.clients.kubernetes.api import in_cluster, in_cluster_or_kubeconfig  # noqa: PLC0415

    connect = in_cluster_or_kubeconfig if only_reads else in_cluster
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
    from lifecycle.clients.kubernetes.api import StateSecret  # noqa: PLC0415 - as above

    return StateSecret(cluster, namespace=settings.namespace, name=name, retrying=policy).read
