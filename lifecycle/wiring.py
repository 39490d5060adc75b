"""Every client, built from the settings: both services, the Kubernetes API, and what reads tailscale's state Secret."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

import tenacity

from lifecycle.apply import Writers
from lifecycle.clients.cloudflare.errors import CLOUDFLARE
from lifecycle.clients.cloudflare.reader import CloudflareReader
from lifecycle.clients.cloudflare.writer import CloudflareWriter
from lifecycle.clients.credential import Credential
from lifecycle.clients.headscale.errors import HEADSCALE
from lifecycle.clients.headscale.http import HttpTransport
from lifecycle.clients.headscale.reader import HeadscaleReader
from lifecycle.clients.headscale.transport import Transport
from lifecycle.clients.headscale.writer import HeadscaleWriter
from lifecycle.clients.json_client import JsonClient
from lifecycle.clients.transport import open_http
from lifecycle.clients.trust import add_authorities, public_trust
from lifecycle.domain.errors import ConfigError
from lifecycle.keyfile.reader import KeyFileReader
from lifecycle.keyfile.writer import KeyFileWriter
from lifecycle.settings.models import CleanupSettings, Settings

if TYPE_CHECKING:
    from lifecycle.clients.kubernetes.api import Cluster


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
    trust = public_trust()
    cloudflare = JsonClient(
        stack.enter_context(open_http(settings.cloudflare_api_url, trust=trust)),
        upstream=CLOUDFLARE,
        credential=Credential(partial(settings.secret, "CLOUDFLARE_API_TOKEN"), name="CLOUDFLARE_API_TOKEN"),
        timeout=settings.http_timeout,
        observe=partial(observe, CLOUDFLARE.name),
    )
    observe_headscale = partial(observe, HEADSCALE.name)
    if settings.access == "exec" and cluster is not None:
        return _exec_transport(settings, cluster, observe_headscale), cloudflare
    if settings.headscale_ca_file:
        trust = public_trust()
        try:
            add_authorities(trust, settings.headscale_ca_file)
        except OSError as error:
            raise ConfigError(f"HEADSCALE_CA_FILE: it holds no certificate authority ({error.strerror})") from error
    headscale = JsonClient(
        stack.enter_context(open_http(settings.headscale_address, trust=trust)),
        upstream=HEADSCALE,
        credential=_headscale_credential(settings, cluster),
        timeout=settings.http_timeout,
        observe=observe_headscale,
    )
    return HttpTransport(headscale), cloudflare


def _headscale_credential(settings: Settings, cluster: Cluster | None) -> Credential:
    if settings.headscale_api_key_secret is None or cluster is None:
        return Credential(partial(settings.secret, "HEADSCALE_API_KEY"), name="HEADSCALE_API_KEY")
    # Read when it is first needed, and again when Headscale refuses it.
    read = partial(cluster.token, settings.headscale_namespace, settings.headscale_api_key_secret)
    return Credential(read, name="HEADSCALE_API_KEY_SECRET")


def connect_cluster(settings: Settings, stack: ExitStack, *, only_reads: bool = False) -> Cluster | None:
    """The Kubernetes API, where a setting needs it; a kubeconfig serves a command that only reads.

    Raises:
        ConfigError: it is needed, and there is no way to it.
    """
    if not settings.uses_kubernetes:
        return None
    # Imported late, since most pods do not need it: `scripts/bench` shows its cost.
    from lifecycle.clients.kubernetes.access import find_access  # noqa: PLC0415
    from lifecycle.clients.kubernetes.api import Cluster  # noqa: PLC0415

    if settings.access == "exec":
        needed_for = "HEADSCALE_ACCESS"
    else:
        needed_for = "HEADSCALE_API_KEY_SECRET" if settings.headscale_api_key_secret else "NODE_POLICY"
    access = find_access(needed_for=needed_for, may_use_kubeconfig=only_reads, timeout=settings.http_timeout)
    return stack.enter_context(Cluster(access, timeout=settings.http_timeout))


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
    from lifecycle.clients.kubernetes.state_secret import StateSecret  # noqa: PLC0415 - as above

    return StateSecret(cluster, namespace=settings.namespace, name=name, retrying=policy).read
