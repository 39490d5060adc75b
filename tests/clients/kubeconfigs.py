"""Build the kubeconfigs of tests."""

from __future__ import annotations

from typing import Any


def a_kubeconfig(server: str, *, cluster: dict[str, Any] | None = None, user: dict[str, Any] | None = None) -> Any:
    """Return the content of a kubeconfig whose current context is `laptop`."""
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "laptop",
        "contexts": [{"name": "laptop", "context": {"cluster": "home", "user": "me"}}],
        "clusters": [{"name": "home", "cluster": {"server": server, **(cluster or {})}}],
        "users": [{"name": "me", "user": user or {}}],
    }
