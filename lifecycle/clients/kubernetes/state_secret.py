"""Read the Secret in which a tailscale container stores the state of its node."""

from __future__ import annotations

import tenacity

from lifecycle.clients.kubernetes.api import Cluster
from lifecycle.domain.errors import AuthError, TransientError


def read_state(cluster: Cluster, *, namespace: str, name: str, retrying: tenacity.Retrying) -> dict[str, bytes] | None:
    """Return the Secret's values by their keys; None if it does not exist.

    Raises:
        TransientError: the Secret could not be read, even after all retries.
    """

    def read() -> dict[str, bytes] | None:
        try:
            return cluster.secret(namespace, name)
        except AuthError as error:
            # This is retried, because the Role with the permission is often created shortly after the pod.
            raise TransientError(str(error), upstream=error.upstream, status=error.status) from error

    return retrying(read)
