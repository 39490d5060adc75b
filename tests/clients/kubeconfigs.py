"""Build the kubeconfigs of tests."""

from __future__ import annotations

from typing import Any


def a_kubeconfig(server: str, *, cluster: dict[str, Any] | None = None, user: dict[str, Any] | None = None) -> Any:
    """Return a kubeconfig whose current context is `laptop`. The server of the other context is unreachable."""
    clusters = {"laptop": {"server": server, **(cluster or {})}, "work": {"server": "https://192.0.2.1:6443"}}
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "laptop",
        "contexts": [{"name": name, "context": {"cluster": name, "user": "me"}} for name in clusters],
        "clusters": [{"name": name, "cluster": cluster} for name, cluster in clusters.items()],
        "users": [{"name": "me", "user": user or {}}],
    }
