"""The errors of this program, and the exit status of each."""

from __future__ import annotations

from datetime import timedelta
from http import HTTPStatus

EXIT_FAILED = 1
EXIT_USAGE = 2

EXIT_STATUSES = {
    0: "done; for `dns-watch` without `--once` also: stopped by a signal",
    EXIT_FAILED: "failed, or stopped by a signal before the work was done; for `status` also: manual action is needed",
    EXIT_USAGE: "invalid arguments, settings or manifests; every problem is reported",
}
"""What each exit status means, for all commands."""


class LifecycleError(Exception):
    """An expected failure. The message says what failed, and what to do about the failure."""

    exit_status = EXIT_FAILED


class ConfigError(LifecycleError):
    """A setting is missing or invalid."""

    exit_status = EXIT_USAGE


class ManifestError(LifecycleError):
    """A manifest is malformed, or asks for something that `inject` cannot do."""

    exit_status = EXIT_USAGE


class KeyFileError(LifecycleError):
    """The key file or the key metadata beside it cannot be read or written."""


class NotRegisteredError(LifecycleError):
    """This pod's node did not appear in Headscale within the configured time."""


class UserError(LifecycleError):
    """The Headscale user that owns the nodes and keys cannot be determined."""


class NameTakenError(LifecycleError):
    """The main name of this workload has a record of another DNS_OWNER or workload."""


class PruneLimitError(LifecycleError):
    """`prune` would remove more workloads than PRUNE_MAX allows."""


class StoppedError(LifecycleError):
    """The command received SIGTERM or SIGINT before its work was done."""


class ApiError(LifecycleError):
    """An upstream (Headscale, Cloudflare or the Kubernetes API) refused a request or did not respond.

    Attributes:
        upstream: the name of the upstream, such as "Headscale".
        status: the HTTP status of the response; None if there was no complete response.
    """

    def __init__(self, message: str, *, upstream: str, status: int | None = None) -> None:
        super().__init__(message)
        self.upstream = upstream
        self.status = status


class TransientError(ApiError):
    """The request can be retried.

    Attributes:
        retry_after: the delay that the upstream requested; None if it requested none.
        was_sent: False if no connection was opened, so the upstream cannot have received the request.
    """

    def __init__(
        self,
        message: str,
        *,
        upstream: str,
        status: int | None = None,
        retry_after: timedelta | None = None,
        was_sent: bool = True,
    ) -> None:
        super().__init__(message, upstream=upstream, status=status)
        self.retry_after = retry_after
        self.was_sent = was_sent

    @property
    def throttled(self) -> bool:
        """True if the response was "too many requests"."""
        return self.status == HTTPStatus.TOO_MANY_REQUESTS


class AuthError(ApiError):
    """Credentials were refused, or a permission is missing."""


class NotFoundError(ApiError):
    """The upstream itself reports that the object does not exist. A 404 of a proxy is a TransientError."""


class ConflictError(ApiError):
    """Another object conflicts with the request, or the object was changed after it was read."""


class ResponseError(ApiError):
    """A malformed or unexpected response."""
