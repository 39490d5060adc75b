"""What a refusal by Cloudflare means.

There is no official list of error codes; these come from public issue trackers and recorded responses.
Messages change over the years, codes do not.
"""

from __future__ import annotations

from typing import Any

from lifecycle.clients.http import Answer
from lifecycle.domain.errors import ApiError, AuthError, ConflictError, NotFoundError, ResponseError, TransientError

UPSTREAM = "Cloudflare"

# What each group of codes means, the most telling first.
_MEANINGS: tuple[tuple[frozenset[int], type[ApiError], str], ...] = (
    (
        frozenset({6003, 9106}),
        AuthError,
        "CLOUDFLARE_API_TOKEN is not an API token; is it a global API key, or are there quotes around it?",
    ),
    (
        frozenset({9109, 10001}),
        AuthError,
        "CLOUDFLARE_API_TOKEN is not valid, or has expired; make one with Zone / DNS / Edit",
    ),
    (
        frozenset({10000}),
        AuthError,
        "CLOUDFLARE_API_TOKEN may not do this; it needs Zone / DNS / Edit, and has to cover CLOUDFLARE_ZONE_ID",
    ),
    (
        frozenset({7000, 7003}),
        ResponseError,
        "CLOUDFLARE_ZONE_ID is no zone's; it has 32 hex digits and stands on the zone's overview page",
    ),
    (frozenset({1038}), ResponseError, "zones under this top-level domain cannot be changed through the API"),
    (frozenset({81044}), NotFoundError, "the record is gone"),
    (
        frozenset({81053, 81054, 81057, 81058}),
        ConflictError,
        "another record stands at the name; the next look will tell which, or CLOUDFLARE_ZONE_ID is another domain's",
    ),
    (frozenset({81045}), ConflictError, "the zone has as many records as its plan allows; delete some"),
)

# For an answer with other codes, or with none.
_STATUS_MEANINGS: dict[int, tuple[type[ApiError], str]] = {
    401: (AuthError, "CLOUDFLARE_API_TOKEN was refused"),
    403: (AuthError, "CLOUDFLARE_API_TOKEN was refused"),
    404: (NotFoundError, "there is no such record or zone; is CLOUDFLARE_ZONE_ID right?"),
}

_NOT_FOUND = 404
_THROTTLED = 429
_CLIENT_ERRORS = range(400, 500)


def explain(what: str, answer: Answer) -> ApiError | None:
    """What a refusal by Cloudflare means, by its codes.

    Returns:
        None when the status says it all: throttled, or trouble at Cloudflare.
    """
    if answer.status == _THROTTLED or answer.status not in _CLIENT_ERRORS:
        return None
    codes = set(_codes(answer.json))
    ray = answer.headers.get("cf-ray")
    told = f"{what}: {answer.status}, code {', '.join(map(str, sorted(codes))) or 'none'}"
    if ray:
        told += f", cf-ray {ray}"

    if answer.status == _NOT_FOUND and not codes:
        return TransientError(
            f"the answer to {what} is a 404 that is not Cloudflare's own: a proxy's, or CLOUDFLARE_API_URL points "
            "elsewhere",
            upstream=UPSTREAM,
            status=answer.status,
        )
    by_status = _STATUS_MEANINGS.get(answer.status, (ResponseError, "the request was refused"))
    by_code = [(kind, meaning) for group, kind, meaning in _MEANINGS if codes & group]
    kind, meaning = [*by_code, by_status][0]
    return kind(f"Cloudflare: {meaning} ({told})", upstream=UPSTREAM, status=answer.status)


def _codes(body: Any) -> list[int]:
    """Every code of an answer; the telling one is sometimes in the chain below another."""
    errors = _list(body, "errors")
    causes = [cause for error in errors for cause in _list(error, "error_chain")]
    return [item["code"] for item in errors + causes if isinstance(item, dict) and isinstance(item.get("code"), int)]


def _list(value: Any, member: str) -> list[Any]:
    items = value.get(member) if isinstance(value, dict) else None
    return items if isinstance(items, list) else []
