"""Turn a refusal by Headscale, in any release, into an error with advice."""

from __future__ import annotations

import re
from enum import IntEnum
from typing import Any, Final

import httpx

from lifecycle.clients.response import Response
from lifecycle.clients.upstream import Upstream
from lifecycle.domain.errors import ApiError, AuthError, ConflictError, NotFoundError, ResponseError, TransientError
from lifecycle.domain.releases import NEWEST_TESTED, is_untested

UPSTREAM: Final = "Headscale"


class _Grpc(IntEnum):
    """Codes of gRPC, which the body of an error response of 0.29 and older contains."""

    UNKNOWN = 2
    NOT_FOUND = 5
    RESOURCE_EXHAUSTED = 8  # the response exceeds the size limit of a gRPC message


_GRPC_CODES = range(1, 17)

# The body of the response to a refused API key, up to 0.29.
_UNAUTHORIZED_TEXT = "Unauthorized"

# The text of an error about a missing object. An error with another text has another cause, such as a database that is
# down.
MISSING_OBJECT: Final = re.compile(r"\b(record|node|user|authkey) not found", re.IGNORECASE)

# The texts of the server errors with which 0.23 and 0.24 refuse to expire an expired or used key.
_UNUSABLE_KEY = frozenset({"AuthKey expired", "AuthKey has already been used"})

# 0.24 and 0.25 find users only by name. If two users have the same name, requests that list or create their keys fail
# with this text.
AMBIGUOUS_USER_TEXT: Final = "expected exactly one user"
AMBIGUOUS_USER_ADVICE: Final = (
    "Another user has the same name. Up to 0.25, Headscale finds users by name, even with HEADSCALE_USER=id:N. "
    "List the users with `headscale users list` and rename one with `headscale users rename`, or upgrade to 0.26."
)


def explain(what: str, response: Response) -> ApiError | None:
    """Return the error for a refused request; None if the HTTP status alone shows the cause; see `Upstream.explain`.

    In releases up to 0.29, the HTTP status alone is often ambiguous.
    """
    status = response.status
    code, text = _grpc_error(response.json)
    kind: type[ApiError]
    match status, code:
        case _ if _is_unauthorized(response):
            kind, message = AuthError, _explain_unauthorized(what, response)
        case httpx.codes.INTERNAL_SERVER_ERROR, _Grpc.UNKNOWN if MISSING_OBJECT.search(text):
            kind, message = NotFoundError, f"Headscale: {what}: not found"
        case httpx.codes.INTERNAL_SERVER_ERROR, _Grpc.UNKNOWN if text in _UNUSABLE_KEY:
            kind, message = ConflictError, f"Headscale: {what}: the key is already used or expired"
        case httpx.codes.INTERNAL_SERVER_ERROR, _Grpc.UNKNOWN if AMBIGUOUS_USER_TEXT in text:
            kind, message = ResponseError, f"Headscale refused {what} ({text}). {AMBIGUOUS_USER_ADVICE}"
        case httpx.codes.NOT_FOUND, _ if code == _Grpc.NOT_FOUND or _is_problem(response):
            kind, message = NotFoundError, f"Headscale: {what}: not found"
        case httpx.codes.NOT_FOUND, _:
            kind = TransientError
            message = (
                f"The response to {what} is a 404 that is not Headscale's own. Headscale may be starting behind a "
                "proxy, or HEADSCALE_URL points elsewhere."
            )
        case httpx.codes.TOO_MANY_REQUESTS, _Grpc.RESOURCE_EXHAUSTED:
            kind = ResponseError
            message = (
                f"Headscale has more nodes or pre-auth keys than it can return in one response ({what}: {status}). "
                "Delete old ones, or upgrade Headscale to 0.30."
            )
        case _:
            return None
    return kind(message, upstream=UPSTREAM, status=status)


def _is_unauthorized(response: Response) -> bool:
    return response.status in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN) or (
        # Up to 0.26, the response to a wrong API key is a server error with this body.
        response.status == httpx.codes.INTERNAL_SERVER_ERROR and response.text.strip() == _UNAUTHORIZED_TEXT
    )


def _explain_unauthorized(what: str, response: Response) -> str:
    if is_from_upstream(response):
        return (
            f"Headscale refused the API key ({what}: {response.status}). Create one with "
            "`headscale apikeys create --expiration 90d` and store it in the Secret or file that HEADSCALE_API_KEY "
            "is read from."
        )
    return (
        f"Something in front of Headscale refused {what} ({response.status}), such as a proxy or an ingress. Check "
        f"HEADSCALE_URL, and that the proxy admits this pod.{response.reason}"
    )


def malformed_response(what: str, *, version: str = "") -> ResponseError:
    """Return the error for a response that lacks required values, for example because it is from another server.

    Args:
        what: the request, for the message.
        version: the version of the server; "" if unknown.
    """
    if is_untested(version):
        text = (
            f"The response of Headscale {version} to {what} has another form than that of {NEWEST_TESTED}, the "
            "newest release that this program was tested with. Upgrade tailscale-lifecycle."
        )
    else:
        advice = "Check that HEADSCALE_URL is the address of Headscale itself, without a path."
        text = f"Malformed response to {what}. {advice}"
    return ResponseError(text, upstream=UPSTREAM)


def is_from_upstream(response: Response) -> bool:
    """Return True if Headscale itself refused the request, and not a proxy; see `Upstream.is_from_upstream`."""
    return (
        response.text.strip() == _UNAUTHORIZED_TEXT
        or _grpc_error(response.json)[0] in _GRPC_CODES
        or _is_problem(response)
    )


def _grpc_error(body: Any) -> tuple[int | None, str]:
    match body:
        case {"code": int(code), "message": str(message)}:
            return code, message
        case _:
            return None, ""


def _is_problem(response: Response) -> bool:
    """Return True for a problem document (RFC 9457), the form of refusals from 0.30 on."""
    return (
        response.headers.get("content-type", "").startswith("application/problem+json")
        and isinstance(response.json, dict)
        and response.json.get("status") == response.status
    )


HEADSCALE: Final = Upstream(
    UPSTREAM,
    url_setting="HEADSCALE_URL",
    ca_setting="HEADSCALE_CA_FILE",
    explain=explain,
    is_from_upstream=is_from_upstream,
    # With the default HTTP_TIMEOUT of 10 s, a request can take 40 s. This is longer than the 30 s after which
    # Headscale's HTTP server ends a request (its `WriteTimeout`). Repeating a request earlier would make an overload
    # worse, because Headscale also does the expensive check of the API key for a client that has disconnected.
    timeout_factor=4,
    health_path="/health",
)
