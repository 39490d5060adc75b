"""Find the pod in which Headscale runs, and run commands in it, through the Kubernetes API."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lifecycle.clients.headscale.errors import UPSTREAM
from lifecycle.clients.kubernetes.api import Cluster, Pod
from lifecycle.clients.kubernetes.exec import Output
from lifecycle.domain.errors import ResponseError, TransientError

_CONTAINER = "headscale"
_SELECTORS = ("app.kubernetes.io/name=headscale", "app=headscale")

CHECK_SETTINGS = "Check HEADSCALE_POD_SELECTOR and HEADSCALE_CONTAINER."


@dataclass(frozen=True, slots=True)
class Target:
    """The container in which a command runs."""

    pod: Pod
    container: str

    def __str__(self) -> str:
        return f"container {self.container} of pod {self.pod.namespace}/{self.pod.name}"


class HeadscalePod:
    """The pod in which Headscale runs. The pod is searched again for each command, because pods are replaced.

    Args:
        selector: a label selector for the pod; None = the usual labels of Headscale.
        container: the name of the container; None = the container called headscale, or else the only container.
    """

    def __init__(self, cluster: Cluster, *, namespace: str, selector: str | None, container: str | None) -> None:
        self.cluster = cluster
        self._namespace = namespace
        self._selectors = (selector,) if selector else _SELECTORS
        self._container = container

    def run(self, command: Sequence[str]) -> tuple[Target, Output]:
        """Run a command in the container, and return where it ran and what it wrote."""
        target = self._find()
        try:
            return target, self.cluster.run(target.pod, target.container, command)
        except ResponseError as error:
            raise ResponseError(f"{error} {CHECK_SETTINGS}", upstream=error.upstream, status=error.status) from error

    def _find(self) -> Target:
        other_pods: list[Pod] = []
        for selector in self._selectors:
            pods = self.cluster.pods(self._namespace, selector)
            candidates = self._candidates(pods)
            ready = [(pod, container) for pod, container in candidates if pod.ready]
            if ready:
                # The newest pod is chosen, because changes that an older pod makes during a rolling update can be lost.
                pod, container = max(ready, key=lambda candidate: (candidate[0].created_at, candidate[0].name))
                return Target(pod, container)
            if candidates:
                names = ", ".join(pod.name for pod, _ in candidates)
                raise TransientError(f"Headscale's pod is not ready ({self._namespace}/{names}).", upstream=UPSTREAM)
            other_pods += pods
        if other_pods:
            raise ResponseError(
                f"Pod {self._namespace}/{other_pods[0].name} has no container {self._container or _CONTAINER}. Set "
                f"HEADSCALE_CONTAINER to one of: {', '.join(other_pods[0].containers)}.",
                upstream=UPSTREAM,
            )
        raise TransientError(
            f"There is no Headscale pod in namespace {self._namespace} (labels {' or '.join(self._selectors)}). Set "
            "HEADSCALE_NAMESPACE and HEADSCALE_POD_SELECTOR, or use HEADSCALE_URL and HEADSCALE_API_KEY.",
            upstream=UPSTREAM,
        )

    def _candidates(self, pods: Sequence[Pod]) -> list[tuple[Pod, str]]:
        """Return the pods in which Headscale can run, ready or not, each with the name of Headscale's container."""
        container = self._container or _CONTAINER
        # Pods of other programs can have the same labels, so the container's name identifies Headscale.
        pods_with_container = [(pod, container) for pod in pods if container in pod.containers]
        if pods_with_container or self._container is not None:
            return pods_with_container
        return [(pod, pod.containers[0]) for pod in pods if len(pod.containers) == 1]
