"""Turn a refusal by Cloudflare into an error with advice.

Cloudflare publishes no list of error codes. The codes here come from public issue trackers and recorded responses.
The messages of Cloudflare are not used to choose the error, because Cloudflare has changed them over the years.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Any, Final, NamedTuple

import httpx

from lifecycle.clients.response import Response, listed_errors
from lifecycle.clients.upstream import Upstream
from lifecycle.domain.errors import ApiError, AuthError, ConflictError, NotFoundError, ResponseError, TransientError

UPSTREAM: Final = "Cloudflare"


class Meaning(NamedTuple):
    """What a refusal means: the kind of error, and the advice."""

    kind: type[ApiError]
    text: str


_MALFORMED_TOKEN = Meaning(
    AuthError,
    "CLOUDFLARE_API_TOKEN is not an API token. Check that it is not a global API key, and not quoted.",
)
_INVALID_TOKEN = Meaning(
    AuthError,
    "CLOUDFLARE_API_TOKEN was refused: it is invalid or expired, has no access to this zone, or does not allow "
    "this IP address. Check the token's IP filter, or create a token with Zone / DNS / Edit.",
)
_MISSING_PERMISSION = Meaning(
    AuthError,
    "CLOUDFLARE_API_TOKEN has no permission for this request. It needs Zone / DNS / Edit for the zone of "
    "CLOUDFLARE_ZONE_ID, and must allow this IP address.",
)
_WRONG_ZONE_ID = Meaning(
    ResponseError,
    "CLOUDFLARE_ZONE_ID is not a zone's id. The zone's overview page shows its 32 hex digits.",
)
_WRONG_API_URL = Meaning(
    ResponseError, "CLOUDFLARE_API_URL is not the URL of the API, which ends in /client/v4 at Cloudflare."
)
_CONFLICTING_RECORD = Meaning(ConflictError, "Another record at the name conflicts with this one.")
_NAME_IN_USE = Meaning(
    ConflictError,
    "The name is in use: by another record, or by another Cloudflare product such as a Workers custom domain. A "
    "custom domain is removed in that product (Workers & Pages, the Worker's settings, Domains & Routes).",
)

# The codes for a path that the API does not have.
_NO_ROUTE = frozenset({7000, 7003})

# The meaning of each group of codes. If a response has codes of several groups, the first of these groups counts.
_BY_CODE: tuple[tuple[Container[int], Meaning], ...] = (
    ({6003, 9106}, _MALFORMED_TOKEN),
    ({9109, 10001}, _INVALID_TOKEN),
    ({10000}, _MISSING_PERMISSION),
    (_NO_ROUTE, _WRONG_ZONE_ID),
    ({1038}, Meaning(ResponseError, "Zones under this top-level domain cannot be changed through the API.")),
    ({81044}, Meaning(NotFoundError, "The record no longer exists.")),
    ({81045}, Meaning(ConflictError, "The zone has as many records as its plan allows. Delete some.")),
    ({81053, 81054, 81057, 81058}, _CONFLICTING_RECORD),
    # The other codes of this range have similar meanings. For example, 81062 is returned for a Workers custom domain.
    (range(81050, 81070), _NAME_IN_USE),
)

# The meaning of each HTTP status, for a response with other codes.
_BY_STATUS: dict[int, Meaning] = {
    401: Meaning(AuthError, "CLOUDFLARE_API_TOKEN was refused."),
    403: Meaning(AuthError, "CLOUDFLARE_API_TOKEN was refused."),
    404: Meaning(NotFoundError, "The record or zone does not exist. Check CLOUDFLARE_ZONE_ID."),
}
_OTHER_STATUS = Meaning(ResponseError, "The request was refused.")

_BLOCKED = Meaning(
    ResponseError,
    "Something in front of the API blocked the request: a proxy, or Cloudflare's firewall, which blocks some IP "
    "addresses.",
)

# The meaning of each HTTP status for a response without codes. Such a response is not from Cloudflare's API.
_BY_STATUS_WITHOUT_CODE: dict[int, Meaning] = {
    401: _BLOCKED,
    403: _BLOCKED,
    404: Meaning(
        TransientError,
        "The 404 is not Cloudflare's own. It is from a proxy, or CLOUDFLARE_API_URL points elsewhere.",
    ),
}


def explain(request: str, response: Response) -> ApiError | None:
    """Return the error for a refusal, by its codes and status; see `Upstream.explain`."""
    status = response.status
    if status == httpx.codes.TOO_MANY_REQUESTS or not httpx.codes.is_client_error(status):
        return None
    codes = sorted(set(_codes(response.json)))
    # The path /zones contains no id, so if the API does not know this path, its URL is wrong.
    is_wrong_url = request == "GET /zones" and not _NO_ROUTE.isdisjoint(codes)
    kind, text = _WRONG_API_URL if is_wrong_url else _meaning(status, codes)
    details = f"{request}: {status}, code {', '.join(map(str, codes)) or 'none'}"
    if ray := response.headers.get("cf-ray"):
        details += f", cf-ray {ray}"
    return kind(f"Cloudflare: {text} ({details}){response.reason}", upstream=UPSTREAM, status=status)


def _meaning(status: int, codes: list[int]) -> Meaning:
    for group, meaning in _BY_CODE:
        if any(code in group for code in codes):
            return meaning
    return (_BY_STATUS if codes else _BY_STATUS_WITHOUT_CODE).get(status, _OTHER_STATUS)


def _codes(body: Any) -> list[int]:
    return [error["code"] for error in listed_errors(body) if isinstance(error.get("code"), int)]


CLOUDFLARE: Final = Upstream(
    UPSTREAM,
    url_setting="CLOUDFLARE_API_URL",
    ca_setting="SSL_CERT_FILE",
    explain=explain,
    is_from_upstream=lambda response: bool(_codes(response.json)),
)
