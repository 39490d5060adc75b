"""How to reach the Kubernetes API of the cluster that this pod runs in."""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from typing import Final

from lifecycle.clients.transport import Proxy
from lifecycle.clients.trust import private_trust
from lifecycle.clients.upstream import Upstream
from lifecycle.domain.errors import ConfigError, TransientError

UPSTREAM: Final = "Kubernetes"

# Source: Kubernetes, "Accessing the Kubernetes API from a Pod".
SERVICE_ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")

# What to set instead, by the setting that needs the Kubernetes API.
_ALTERNATIVES = {
    "HEADSCALE_ACCESS": "set HEADSCALE_URL and HEADSCALE_API_KEY",
    "HEADSCALE_API_KEY_SECRET": "set HEADSCALE_API_KEY or HEADSCALE_API_KEY_FILE instead",
    "NODE_POLICY": "set NODE_POLICY=replace",
}


class NoKubeconfigError(ConfigError):
    """There is no kubeconfig."""


@dataclass(frozen=True, slots=True)
class Access:
    """How to reach a Kubernetes API server.

    Attributes:
        url: of the server.
        description: which cluster it is, for messages.
        credentials: whose they are, for messages.
        upstream: names what configures the access, for messages.
        trust: the authority of the server's certificate, and our certificate if we have one.
        authorization: returns the header with the current token; empty if we authenticate with a certificate.
        tls_server_name: the name that the server's certificate has to be for; None = the host of the URL.
        proxy: on the way to the server.
    """

    url: str
    description: str
    credentials: str
    upstream: Upstream
    trust: ssl.SSLContext
    authorization: Callable[[], Mapping[str, str]]
    tls_server_name: str | None = None
    proxy: Proxy | None = None


def in_cluster(*, needed_for: str, proxy: Proxy | None = None) -> Access:
    """Return the access that a pod's service account has.

    Args:
        needed_for: the setting that needs the Kubernetes API.
        proxy: used if given.

    Raises:
        ConfigError: this is not a pod, or its service account's token is not mounted.
    """
    host, port = os.environ.get("KUBERNETES_SERVICE_HOST"), os.environ.get("KUBERNETES_SERVICE_PORT")
    if not host or not port:
        raise _unavailable("KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not set", needed_for)
    try:
        (SERVICE_ACCOUNT / "token").read_text()
        trust = private_trust(SERVICE_ACCOUNT / "ca.crt")
    except OSError as error:
        raise _unavailable(f"{SERVICE_ACCOUNT}: {error.strerror}", needed_for) from error
    url = f"https://{_bracketed(host)}:{port}"
    return Access(
        url=url,
        description=f"in-cluster, {url}",
        credentials="service account's token",
        upstream=Upstream(UPSTREAM, url_setting="KUBERNETES_SERVICE_HOST", ca_setting="the ConfigMap kube-root-ca.crt"),
        trust=trust,
        authorization=partial(bearer_token, SERVICE_ACCOUNT / "token"),
        proxy=proxy,
    )


def find_access(*, needed_for: str, may_use_kubeconfig: bool, timeout: timedelta, proxy: Proxy | None = None) -> Access:
    """Return the access that a pod's service account has; outside of a cluster, that of the kubeconfig.

    Args:
        needed_for: the setting that needs the Kubernetes API.
        may_use_kubeconfig: for commands that only read. A command that writes must not use a laptop's current context.
        timeout: for a credential plugin of the kubeconfig.
        proxy: used if given.

    Raises:
        ConfigError: there is no access.
    """
    try:
        return in_cluster(needed_for=needed_for, proxy=proxy)
    except ConfigError as not_in_cluster:
        if not may_use_kubeconfig:
            raise
        from lifecycle.clients.kubernetes.kubeconfig import kubeconfig  # noqa: PLC0415 - it needs a YAML parser

        try:
            return kubeconfig(timeout=timeout, proxy=proxy)
        except NoKubeconfigError as error:
            raise ConfigError(f"{not_in_cluster} {error}") from None


def bearer_token(path: Path) -> Mapping[str, str]:
    """Return the header with the token in a file, which is read for each request: the kubelet rotates it.

    Raises:
        TransientError: the file cannot be read.
    """
    try:
        return {"Authorization": f"Bearer {path.read_text().strip()}"}
    except (OSError, UnicodeDecodeError) as error:
        raise TransientError(f"The token for Kubernetes cannot be read: {error}", upstream=UPSTREAM) from error


def _bracketed(host: str) -> str:
    try:
        return f"[{host}]" if isinstance(ip_address(host), IPv6Address) else host
    except ValueError:
        return host


def _unavailable(reason: str, needed_for: str) -> ConfigError:
    return ConfigError(
        f"{needed_for} needs the Kubernetes API, which is not available here ({reason}). In a pod, mount its service "
        "account's token (automountServiceAccountToken). Elsewhere, only --dry-run works, with a kubeconfig. "
        f"Alternatively, {_ALTERNATIVES[needed_for]}."
    )
