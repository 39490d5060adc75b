"""Helpers of tests in which the real clients reach Headscale in a pod of a simulated Kubernetes cluster."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any, Final

import httpx
import pytest
import tenacity

from lifecycle.apply import Writers
from lifecycle.cleanup.run import Cleanup
from lifecycle.clients.headscale.exec import ExecTransport
from lifecycle.clients.headscale.pod import HeadscalePod
from lifecycle.clients.headscale.writer import HeadscaleWriter
from lifecycle.clients.http import HttpClient
from lifecycle.clients.kubernetes.access import Access
from lifecycle.clients.kubernetes.api import Cluster, Pod
from lifecycle.clients.transport import open_http
from lifecycle.clients.trust import public_trust
from lifecycle.clients.upstream import Upstream
from lifecycle.commands import CLEANUP_RETRY_BUDGET
from lifecycle.domain.proxy import Proxy
from lifecycle.runtime.retry import RetryPolicy
from lifecycle.settings.models import CleanupSettings, Settings
from tests.simulators.headscale_cli import HeadscaleCli
from tests.simulators.kubernetes import KubernetesSimulator, SimulatedPod
from tests.simulators.memory import MemoryClient
from tests.world import StopAt, World

HEADSCALE_NAMESPACE: Final = "headscale"
HEADSCALE_POD: Final = Pod(
    HEADSCALE_NAMESPACE,
    "headscale-0",
    "uid",
    "2026-03-01T12:00:00Z",
    ("headscale",),
    ready=True,
    keeps_its_name=False,
)
"""A pod of a Deployment, so its name changes. For tests that do not look up the pod."""
NAMESPACE: Final = "default"
"""The namespace of the pod under test."""

STATE_SECRET: Final = "grafana-tailscale"
"""The Secret in which the tailscale container of the pod under test keeps its state."""

MEMORY_URL: Final = "http://kubernetes"
"""The URL of the Kubernetes API if the simulator is in this process. No connection is opened."""

DESCRIPTION: Final = "a simulated cluster"
"""The text with which error messages describe the cluster."""

# RBAC rules.
MAY_LIST_PODS: Final = {"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]}
MAY_EXEC: Final = {"apiGroups": [""], "resources": ["pods/exec"], "verbs": ["create", "get"]}


def may_read(*names: str) -> dict[str, Any]:
    """Return the RBAC rule that allows reading these Secrets."""
    return {"apiGroups": [""], "resources": ["secrets"], "resourceNames": list(names), "verbs": ["get"]}


@contextmanager
def cluster_at(url: str, kubernetes: KubernetesSimulator, *, timeout_s: float = 10.0) -> Iterator[Cluster]:
    """Yield a client of a simulator that listens at a URL, with the token that it accepts now."""
    access = access_to(url, kubernetes.token)
    with access.client:
        yield Cluster(access, timeout=timedelta(seconds=timeout_s))


def access_to(
    url: str,
    token: str,
    *,
    trust: ssl.SSLContext | None = None,
    proxy: Proxy | None = None,
    tls_server_name: str | None = None,
) -> Access:
    """Return the access to a simulator that listens at a URL."""
    client = open_http(url, trust=trust or public_trust(), proxy=proxy, tls_server_name=tls_server_name)
    return replace(_access_with(client, token), proxy=proxy)


def _access_with(client: httpx.Client, token: str) -> Access:
    return Access(
        client=client,
        description=DESCRIPTION,
        credentials="simulated token",
        upstream=Upstream("Kubernetes", url_setting="KUBERNETES_SERVICE_HOST", ca_setting="ca.crt"),
        authorization=lambda: {"Authorization": f"Bearer {token}"},
    )


def memory_access(kubernetes: KubernetesSimulator) -> Access:
    """Return the access to a simulator in this process."""
    return _access_with(MemoryClient(kubernetes.handle, MEMORY_URL), kubernetes.token)


class MemoryCluster(Cluster):
    """A Kubernetes client whose requests are calls of a simulator in this process."""

    def __init__(self, kubernetes: KubernetesSimulator, now: Callable[[], datetime]) -> None:
        access, timeout = memory_access(kubernetes), timedelta(seconds=10)
        super().__init__(access, timeout=timeout)
        self.http = HttpClient(access.client, upstream=access.upstream, timeout=timeout, now=now)


def exec_transport(cluster: Cluster, now: Callable[[], datetime], **settings: str) -> ExecTransport:
    """Return the transport that runs Headscale commands in a pod. The settings select the pod and the container."""
    defaults: dict[str, Any] = {"namespace": HEADSCALE_NAMESPACE, "selector": None, "container": None}
    return ExecTransport(HeadscalePod(cluster, **(defaults | settings)), now=now)


def add_headscale(kubernetes: KubernetesSimulator, cli: HeadscaleCli) -> SimulatedPod:
    """Add a pod whose container `headscale` has the command `headscale`."""
    return kubernetes.add_pod("headscale-0", {"headscale": {"headscale": cli}}, namespace=HEADSCALE_NAMESPACE)


class ClusterWorld(World):
    """A `World` with a Kubernetes cluster. Commands use `exec` by default, because no URL and no API key are set.

    With NODE_POLICY=keep, `cleanup` reads the state of the tailscale container from a Secret.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path, version: str = "0.28.0") -> None:
        super().__init__(monkeypatch, folder, version)
        kubernetes = self.kubernetes = KubernetesSimulator(now=self.clock.true_now)
        self.cli = HeadscaleCli(self.headscale, now=self.clock.true_now)
        self.pod = add_headscale(kubernetes, self.cli)
        kubernetes.allow(HEADSCALE_NAMESPACE, MAY_LIST_PODS, MAY_EXEC)
        kubernetes.allow(NAMESPACE, may_read(STATE_SECRET))
        self.environment |= {
            "HEADSCALE_URL": "",
            "HEADSCALE_API_KEY": "",
            "POD_NAMESPACE": NAMESPACE,
        }

    def cluster(self) -> Cluster:
        """Return a client of the Kubernetes API."""
        return MemoryCluster(self.kubernetes, self.clock.now)

    def writers(self, settings: Settings, policy: tenacity.Retrying) -> Writers:
        """Return the real clients. With `exec`, Headscale is reached through its pod."""
        writers = super().writers(settings, policy)
        if settings.access == "exec":
            return replace(writers, headscale=HeadscaleWriter(exec_transport(self.cluster(), self.clock.now), policy))
        return writers

    def cleanup(self, stop: Event | None = None, /, **variables: str) -> Cleanup:
        """Return `cleanup`. With NODE_POLICY=keep, it reads the state Secret."""
        settings = self.settings(CleanupSettings, **variables)
        stop = stop or StopAt(self.clock)
        policy = RetryPolicy(CLEANUP_RETRY_BUDGET, stop, clock=self.clock.monotonic)
        state = None
        if settings.node_policy == "keep":
            name = settings.ts_kube_secret or ""
            state = partial(self.cluster().tailscale_state, settings.namespace, name, policy)
        return Cleanup(
            settings,
            writers=self.writers(settings, policy),
            now=self.clock.now,
            stop=stop,
            read_state=state,
        )
