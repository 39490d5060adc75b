"""How to reach the cluster of a kubeconfig's current context, for a dry run outside of a cluster.

Source: Kubernetes, "kubeconfig (v1)" and "client authentication (v1)" in the reference of configuration APIs.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import ssl
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import yaml

from lifecycle.clients.kubernetes.access import UPSTREAM, Access, NoKubeconfigError, bearer_token
from lifecycle.clients.text import quoted
from lifecycle.clients.transport import Proxy
from lifecycle.clients.trust import private_trust, public_trust
from lifecycle.clients.upstream import Upstream
from lifecycle.domain.errors import ConfigError

_UPSTREAM = Upstream(UPSTREAM, url_setting="the kubeconfig", ca_setting="certificate-authority in the kubeconfig")


@dataclass(frozen=True, slots=True)
class _Entry:
    """A cluster, user or context.

    Attributes:
        folder: of the file that defines it; its paths are relative to this.
    """

    name: str
    value: Mapping[str, Any]
    folder: Path

    def content(self, key: str) -> bytes | None:
        """Return what a pair of members, such as `client-key` and `client-key-data`, refers to."""
        if data := self.value.get(f"{key}-data"):
            return base64.b64decode(data, validate=True)
        if path := self.value.get(key):
            return Path(self.folder, path).read_bytes()
        return None


def kubeconfig(*, timeout: timedelta, proxy: Proxy | None = None) -> Access:
    """Return the access that the current context of the kubeconfig has.

    Args:
        timeout: for a credential plugin.
        proxy: used if given, and if the kubeconfig has none.

    Raises:
        ConfigError: there is no kubeconfig, or it cannot be used.
    """
    try:
        return _access(_load(), timeout=timeout, proxy=proxy)
    except OSError as error:
        reason = f"{error.filename}: {error.strerror}" if error.filename else error
        raise ConfigError(f"The kubeconfig cannot be used: {reason}") from error
    except (yaml.YAMLError, binascii.Error, AttributeError, KeyError, TypeError, ValueError):
        # Not chained: the exception can contain parts of the file, such as keys.
        raise ConfigError("The kubeconfig (KUBECONFIG, or ~/.kube/config) is malformed.") from None


def _load() -> list[tuple[Mapping[str, Any], Path]]:
    """Return the content and folder of each file."""
    paths = [Path(path).expanduser() for path in os.environ.get("KUBECONFIG", "").split(os.pathsep) if path]
    found = [path for path in paths or [Path("~/.kube/config").expanduser()] if path.exists()]
    if not found:
        raise NoKubeconfigError("There is no kubeconfig (KUBECONFIG, or ~/.kube/config).")
    return [(yaml.safe_load(path.read_text()) or {}, path.absolute().parent) for path in found]


def _access(files: list[tuple[Mapping[str, Any], Path]], *, timeout: timedelta, proxy: Proxy | None) -> Access:
    name = next((content["current-context"] for content, _ in files if content.get("current-context")), None)
    if name is None:
        raise ConfigError("The kubeconfig has no current-context.")
    context = _find(files, "context", name)
    cluster = _find(files, "cluster", context.value["cluster"])
    user = _find(files, "user", context.value["user"]) if context.value.get("user") else _Entry("", {}, Path())
    url = cluster.value["server"].rstrip("/")
    if cluster.value.get("insecure-skip-tls-verify"):
        raise ConfigError(
            f"Context {name} of the kubeconfig has insecure-skip-tls-verify. Credentials are not sent to a server that "
            "is not verified. Set certificate-authority instead."
        )
    if "exec" in user.value:
        status = _run_plugin(user, cluster, timeout=timeout)
        user = _Entry(user.name, _as_user(status), user.folder)
    authority = cluster.content("certificate-authority")
    trust = private_trust(cadata=authority.decode()) if authority else public_trust()
    _present_certificate(trust, user)
    return Access(
        url=url,
        description=f"context {name} of the kubeconfig, {url}",
        credentials=f"user {user.name} of the kubeconfig",
        upstream=_UPSTREAM,
        trust=trust,
        authorization=_authorization(user),
        tls_server_name=cluster.value.get("tls-server-name"),
        proxy=_proxy(cluster) or proxy,
    )


def _find(files: list[tuple[Mapping[str, Any], Path]], kind: str, name: str) -> _Entry:
    """Return the first definition; later files do not replace it."""
    for content, folder in files:
        for item in content.get(f"{kind}s") or ():
            if item["name"] == name:
                return _Entry(name, item[kind] or {}, folder)
    raise ConfigError(f"The kubeconfig has no {kind} {name}.")


def _authorization(user: _Entry) -> Callable[[], Mapping[str, str]]:
    match user.value:
        case {"token": str(token)}:
            header = f"Bearer {token}"
        case {"tokenFile": str(path)}:
            return partial(bearer_token, user.folder / path)
        case {"username": str(name), "password": str(password)}:
            header = f"Basic {base64.b64encode(f'{name}:{password}'.encode()).decode()}"
        case {"auth-provider": _}:
            raise ConfigError(
                f"User {user.name} of the kubeconfig has an auth-provider, which is not supported. Use an exec plugin."
            )
        case _:
            return dict
    return lambda: {"Authorization": header}


def _present_certificate(trust: ssl.SSLContext, user: _Entry) -> None:
    certificate, key = user.content("client-certificate"), user.content("client-key")
    if certificate is None or key is None:
        return
    with TemporaryDirectory() as folder:
        # A TLS context reads them from files only.
        paths = Path(folder, "certificate"), Path(folder, "key")
        for path, content in zip(paths, (certificate, key), strict=True):
            path.write_bytes(content)
        trust.load_cert_chain(*paths)


def _proxy(cluster: _Entry) -> Proxy | None:
    url = cluster.value.get("proxy-url")
    if not url:
        return None
    setting = f"proxy-url of cluster {cluster.name} in the kubeconfig"
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, TypeError):
        parsed = httpx.URL()
    if parsed.scheme != "http" or not parsed.host:
        raise ConfigError(f"{setting}: only http://HOST:PORT is supported.")
    return Proxy(url, setting)


def _run_plugin(user: _Entry, cluster: _Entry, *, timeout: timedelta) -> Mapping[str, Any]:
    """Run a credential plugin, and return the credentials that it prints.

    Raises:
        ConfigError: it failed, did not end in time, or printed something else.
    """
    plugin = user.value["exec"]
    name = f"The credential plugin {plugin['command']} (user {user.name} of the kubeconfig)"
    is_interactive = sys.stdin is not None and sys.stdin.isatty()
    info: dict[str, Any] = {
        "apiVersion": plugin["apiVersion"],
        "kind": "ExecCredential",
        "spec": {"interactive": is_interactive},
    }
    if plugin.get("provideClusterInfo"):
        info["spec"]["cluster"] = dict(cluster.value)
    variables = {item["name"]: item["value"] for item in plugin.get("env") or ()}
    try:
        done = subprocess.run(  # noqa: S603 - the kubeconfig is the operator's own
            [plugin["command"], *(plugin.get("args") or ())],
            env={**os.environ, **variables, "KUBERNETES_EXEC_INFO": json.dumps(info)},
            cwd=user.folder,
            stdin=None if is_interactive else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            # It may ask the operator to do something.
            stderr=None if is_interactive else subprocess.PIPE,
            timeout=timeout.total_seconds(),
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ConfigError(f"{name} did not end within {timeout.total_seconds():g} s (HTTP_TIMEOUT).") from None
    except OSError as error:
        raise ConfigError(f"{name} could not be run ({error.strerror}).") from error
    if done.returncode != 0:
        raise ConfigError(
            f"{name} failed with exit status {done.returncode}. {quoted((done.stderr or b'').decode(errors='replace'))}"
        )
    with suppress(ValueError):
        match json.loads(done.stdout):
            case {"kind": "ExecCredential", "status": dict(status)}:
                return status
    raise ConfigError(f"{name} printed no ExecCredential.")


def _as_user(status: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the credentials of a plugin in the form of a kubeconfig's user."""
    renamed = {"clientCertificateData": "client-certificate-data", "clientKeyData": "client-key-data"}
    user = {member: base64.b64encode(status[key].encode()).decode() for key, member in renamed.items() if key in status}
    return user | {"token": status["token"]} if "token" in status else user
