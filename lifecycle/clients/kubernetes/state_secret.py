"""The Secret in which a tailscale container stores the state of its node."""

from __future__ import annotations

import tenacity

from lifecycle.clients.kubernetes.api import Cluster
from lifecycle.domain.errors import AuthError, TransientError


class StateSecret:
    """The Secret in which a tailscale container stores the state of its node.

    Args:
        retrying: the retry policy for reading it.
    """

    def __init__(self, cluster: Cluster, *, namespace: str, name: str, retrying: tenacity.Retrying) -> None:
        self._cluster = cluster
        self._namespace = namespace
        self._name = name
        self._retrying = retrying

    def read(self) -> dict[str, bytes] | None:
        """Return its values by their keys; None if the Secret does not exist.

        Raises:
            TransientError: it could not be read, after all retries.
        """
        return self._retrying(self._read)

    def _read(self) -> dict[str, bytes] | None:
        try:
            return self._cluster.secret(self._namespace, self._name)
        except AuthError as error:
            # The Role is often created a moment after the pod.
            raise TransientError(str(error), upstream=error.upstream, status=error.status) from error
