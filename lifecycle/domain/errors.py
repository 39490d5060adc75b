"""Everything that can go wrong, on one page.

LifecycleError
├── ConfigError           a setting is missing or wrong               exit 2
├── KeyFileError          the key could not be written                exit 1
├── NotRegisteredError    our node did not appear in time             exit 1
├── UserError             no user, or several, where one was meant    exit 1
├── NameTakenError        another owner runs a service of this name   exit 1
├── PruneLimitError       more would be removed than is allowed at once   exit 1
├── StoppedError          asked to stop before the work was done      exit 1
└── ApiError              a service refused or did not answer         exit 1
    ├── TransientError    worth another try: timeout, connection lost, 429, 5xx
    ├── AuthError         credentials refused, or a right is missing
    ├── NotFoundError     the service itself says there is no such thing
    ├── ConflictError     something else stands in the way, or changed it first
    └── ResponseError     an answer this code does not understand
"""

from __future__ import annotations

from datetime import timedelta

EXIT_FAILED = 1
EXIT_USAGE = 2


class LifecycleError(Exception):
    """A failure whose message tells an operator what happened and what to do."""

    exit_status = EXIT_FAILED


class ConfigError(LifecycleError):
    """A setting is missing or wrong; no try will mend it."""

    exit_status = EXIT_USAGE


class KeyFileError(LifecycleError):
    """The key file, or the file beside it, could not be written."""


class NotRegisteredError(LifecycleError):
    """Our node did not appear in Headscale in the time that was set."""


class UserError(LifecycleError):
    """Which Headscale user owns the key and the node cannot be told."""


class NameTakenError(LifecycleError):
    """The name is plainly another owner's."""


class PruneLimitError(LifecycleError):
    """More would be removed at once than an operator allowed."""


class StoppedError(LifecycleError):
    """SIGTERM or SIGINT came before the work was done."""


class ApiError(LifecycleError):
    """A service refused, or did not answer.

    Attributes:
        upstream: the upstream in an operator's words, such as "Headscale".
        status: the HTTP status, or None when there was no whole answer.
    """

    def __init__(self, message: str, *, upstream: str, status: int | None = None) -> None:
        super().__init__(message)
        self.upstream = upstream
        self.status = status


class TransientError(ApiError):
    """Worth another try.

    Attributes:
        retry_after: how long the service asked us to stay away; None when it did not say.
        throttled: the service said "too many requests" (429).
    """

    def __init__(
        self,
        message: str,
        *,
        upstream: str,
        status: int | None = None,
        retry_after: timedelta | None = None,
        throttled: bool = False,
    ) -> None:
        super().__init__(message, upstream=upstream, status=status)
        self.retry_after = retry_after
        self.throttled = throttled


class AuthError(ApiError):
    """Credentials were refused, or lack a right."""


class NotFoundError(ApiError):
    """The service itself says there is no such thing; no proxy's or router's 404."""


class ConflictError(ApiError):
    """Something else stands in the way, or somebody changed it first."""


class ResponseError(ApiError):
    """An answer that this code does not understand."""
