"""Find out how to reach the Kubernetes API: with this pod's service account, or with a kubeconfig."""

from __future__ import annotations

import logging
import os
import ssl
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from logging.handlers import BufferingHandler
from typing import Any, Final

import httpx
from kubernetes.client.configuration import Configuration
from kubernetes.config import ConfigException, kube_config, load_incluster_config
from yaml import YAMLError

from lifecycle.clients.response import excerpt
from lifecycle.clients.transport import open_http
from lifecycle.clients.trust import private_trust, public_trust
from lifecycle.clients.upstream import Upstream
from lifecycle.domain.errors import ConfigError, TransientError
from lifecycle.domain.proxy import Proxy
from lifecycle.runtime.background import in_background

UPSTREAM: Final = "Kubernetes"

_KUBECONFIG = "The kubeconfig (KUBECONFIG, or ~/.kube/config)"

# For each setting that needs the Kubernetes API: what to set so that the API is not needed.
_ALTERNATIVES = {
    "HEADSCALE_ACCESS": "set HEADSCALE_URL and HEADSCALE_API_KEY",
    "HEADSCALE_API_KEY_SECRET": "set HEADSCALE_API_KEY or HEADSCALE_API_KEY_FILE instead",
    "NODE_POLICY": "set NODE_POLICY=replace",
    "KUBERNETES_EVENTS": "set KUBERNETES_EVENTS=false",
}


@dataclass(frozen=True, slots=True)
class Access:
    """How to reach a Kubernetes API server.

    Attributes:
        client: sends requests to the server, through the proxy if there is one. The caller has to close it.
        description, credentials: descriptions of the cluster and of the credentials, for messages.
        upstream: the names of the server and of the settings for its URL and certificate authorities, for messages.
        authorization: returns the request header with the current token; {} if there is a client certificate instead.
        names: the names in the descriptions, of a context and a user of the kubeconfig.
    """

    client: httpx.Client
    description: str
    credentials: str
    upstream: Upstream
    authorization: Callable[[], Mapping[str, str]]
    proxy: Proxy | None = None
    names: tuple[str, ...] = ()


def find_access(
    *,
    needed_for: str,
    may_use_kubeconfig: bool,
    timeout: timedelta,
    proxy_for: Callable[[str], Proxy | None] = lambda _url: None,
    default_trust: Callable[[], ssl.SSLContext] = public_trust,
) -> Access:
    """Return the access with this pod's service account, or outside of a cluster the access with the kubeconfig.

    Args:
        needed_for: the setting that needs the Kubernetes API.
        may_use_kubeconfig: True for commands that only read. A command that writes must not use a kubeconfig, whose
            current context can be any cluster.
        timeout: the time that a credential plugin of the kubeconfig may take.
        proxy_for: returns the proxy for a URL, for a kubeconfig that sets no proxy. In the cluster, no proxy is used.
        default_trust: returns the TLS context for a kubeconfig that sets no authorities.

    Raises:
        ConfigError: there is neither a service account nor a usable kubeconfig.
    """
    try:
        return _in_cluster(needed_for=needed_for)
    except ConfigError as not_in_cluster:
        if not may_use_kubeconfig:
            raise ConfigError(
                f"{not_in_cluster} Only commands that change nothing, such as --dry-run, use a kubeconfig."
            ) from not_in_cluster
        try:
            return _kubeconfig(timeout=timeout, proxy_for=proxy_for, default_trust=default_trust)
        except ConfigException as error:
            # The exception is not chained, because it can contain parts of the file.
            raise ConfigError(f"{not_in_cluster} {_KUBECONFIG} cannot be used: {excerpt(str(error))}") from None
        finally:
            # The library removes its temporary files, which contain keys, only at a regular exit.
            kube_config._cleanup_temp_files()  # noqa: SLF001 - there is no public function


def _service_account() -> Configuration:
    configuration = Configuration()
    # The library would read the token again after a minute of the wall clock, which can be set back.
    load_incluster_config(client_configuration=configuration, try_refresh_token=False)
    return configuration


def _in_cluster(*, needed_for: str) -> Access:
    try:
        configuration = _service_account()
        trust = private_trust(configuration.ssl_ca_cert)
        if not _is_url(configuration.host, "https"):
            raise ConfigException("Service host/port is malformed.")
    except (ConfigException, OSError, ValueError) as error:
        raise ConfigError(
            f"{needed_for} needs the Kubernetes API, which is not available here ({error}). In a pod, mount its "
            "service account's token (automountServiceAccountToken), and check KUBERNETES_SERVICE_HOST and "
            f"KUBERNETES_SERVICE_PORT. Alternatively, {_ALTERNATIVES[needed_for]}."
        ) from error
    return Access(
        client=open_http(configuration.host, trust=trust),
        description=f"in-cluster, {configuration.host}",
        credentials="service account's token",
        upstream=Upstream(UPSTREAM, url_setting="KUBERNETES_SERVICE_HOST", ca_setting="the ConfigMap kube-root-ca.crt"),
        authorization=partial(_authorization, _service_account),
    )


def _kubeconfig(
    *, timeout: timedelta, proxy_for: Callable[[str], Proxy | None], default_trust: Callable[[], ssl.SSLContext]
) -> Access:
    """Return the access with the current context of the kubeconfig.

    Raises:
        ConfigException: there is no kubeconfig, or it has no usable current context.
        ConfigError: the kubeconfig cannot be read, or its server or credentials cannot be used.
    """
    try:
        path = os.environ.get("KUBECONFIG") or "~/.kube/config"
        _, context = kube_config.list_kube_config_contexts(path)
        configuration, problems = _load(path, timeout)
        tls_server_name = configuration.tls_server_name
        # Python's ssl raises other errors than OSError for a malformed name.
        (tls_server_name or "").encode("idna")
    except TimeoutError:
        raise ConfigError(
            f"The credential plugin of the kubeconfig did not end within {timeout.total_seconds():g} s (HTTP_TIMEOUT)."
        ) from None
    except (YAMLError, AttributeError, KeyError, RecursionError, TypeError, ValueError):
        # The exception is not chained, because it can contain parts of the file, such as keys.
        raise ConfigError(f"{_KUBECONFIG} is malformed.") from None
    except OSError as error:
        raise ConfigError(f"{_KUBECONFIG} cannot be read ({error.strerror}).") from None
    name, user = context["name"], context["context"].get("user", "")
    if not configuration.verify_ssl:
        raise ConfigError(
            f"Context {name} of the kubeconfig has insecure-skip-tls-verify. Credentials are not sent to a server that "
            "is not verified. Set certificate-authority instead."
        )
    if not _is_url(configuration.host, "https", "http") or "@" in configuration.host:
        raise ConfigError(
            f"The server of context {name} of the kubeconfig is not a valid https or http URL without a password."
        )
    if problems:
        raise ConfigError(
            f"The credentials of user {user} of the kubeconfig cannot be loaded. If this user has a credential plugin, "
            f"run `kubectl get pods` with the same kubeconfig. {excerpt(' '.join(problems))}"
        )
    try:
        trust = private_trust(configuration.ssl_ca_cert) if configuration.ssl_ca_cert else default_trust()
        if configuration.cert_file:
            trust.load_cert_chain(configuration.cert_file, configuration.key_file)
    except OSError as error:
        raise ConfigError(f"A certificate of the kubeconfig cannot be used ({error.strerror}).") from None
    proxy = _kubeconfig_proxy(configuration.proxy) or proxy_for(configuration.host)
    return Access(
        client=open_http(configuration.host, trust=trust, proxy=proxy, tls_server_name=tls_server_name),
        description=f"kubeconfig context {name}, {configuration.host}",
        credentials=f"user {user} of the kubeconfig",
        upstream=Upstream(UPSTREAM, url_setting="the kubeconfig", ca_setting="certificate-authority in the kubeconfig"),
        authorization=partial(_authorization, lambda: configuration),
        proxy=proxy,
        names=(name, user),
    )


def _load(path: str, timeout: timedelta) -> tuple[Configuration, list[str]]:
    """Load the kubeconfig. Return the configuration, and the errors that the library has logged about a plugin.

    Raises:
        TimeoutError: a credential plugin did not end in time.
    """
    configuration = Configuration()
    # The library takes a proxy from the environment. Instead, use only a proxy of the kubeconfig or of this program's
    # settings.
    configuration.proxy = None
    # Without `persist_config=False`, the library would write a refreshed token to the kubeconfig.
    load = partial(kube_config.load_kube_config, path, client_configuration=configuration, persist_config=False)
    # The library reports a failed plugin only to the root logger.
    logged = BufferingHandler(capacity=sys.maxsize)
    logged.setLevel(logging.ERROR)
    logging.getLogger().addHandler(logged)
    try:
        in_background(load, name="kubeconfig").result(timeout.total_seconds())
    finally:
        logging.getLogger().removeHandler(logged)
    return configuration, [record.getMessage() for record in logged.buffer]


def _kubeconfig_proxy(url: Any) -> Proxy | None:
    if not url:
        return None
    setting = "proxy-url in the kubeconfig"
    if not _is_url(url, "http"):
        raise ConfigError(f"{setting}: only http://HOST:PORT is supported.")
    return Proxy(url, setting)


def _is_url(value: Any, *schemes: str) -> bool:
    """Return True if a value is a URL with one of these schemes, a host and a valid port."""
    with suppress(httpx.InvalidURL, TypeError, ValueError):
        url = httpx.URL(value)
        return url.scheme in schemes and bool(url.host) and (url.port or 1) in range(1, 65_536)
    return False


def _authorization(load: Callable[[], Configuration]) -> Mapping[str, str]:
    """Return the header with the current token, without the line break that can follow the token in a file."""
    try:
        settings: Mapping[str, Any] = load().auth_settings()
        header = {setting["key"]: setting["value"].strip() for setting in settings.values()}
    except (ConfigException, OSError, ValueError) as error:
        raise TransientError(f"The token for Kubernetes cannot be read: {error}", upstream=UPSTREAM) from error
    if not all(value.isascii() and value.isprintable() for value in header.values()):
        raise TransientError("The token for Kubernetes is not ASCII. Correct the kubeconfig.", upstream=UPSTREAM)
    return header
