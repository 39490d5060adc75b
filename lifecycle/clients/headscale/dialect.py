"""Describe how requests differ between Headscale's releases, and detect the release.

The differences between responses are in `parsing.py`, and those between error responses in `errors.py`.

Sources: the REST API v1 and its generated description in Headscale's repository, at the tags of 0.23 to 0.29 and on the
main branch that becomes 0.30 (`proto/headscale/v1`, `hscontrol/grpcv1.go`, `hscontrol/api/v1`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final

from lifecycle.clients.headscale.errors import UPSTREAM
from lifecycle.domain.errors import ResponseError
from lifecycle.domain.model import User

OLDEST_MINOR: Final = 23

# The minor releases that changed the requests about pre-auth keys.
_USER_IDS_SINCE: Final = 26
_KEY_IDS_SINCE: Final = 28

_VERSION = re.compile(r"v?0\.(\d{1,4})\.(\d{1,4})([-+].*)?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Dialect:
    """The form of requests to one release of Headscale.

    Attributes:
        version: the version that the server reports, or a range of releases such as "0.26 or 0.27".
        uses_user_ids: True if requests about pre-auth keys contain the id of the user (0.26 and newer); else the name.
        uses_key_ids: True if a pre-auth key is expired by its id, and the keys of all users are listed together (0.28
            and newer). Otherwise a key is expired by its secret, and the keys of each user are listed separately.
    """

    version: str
    uses_user_ids: bool
    uses_key_ids: bool

    @classmethod
    def of_minor(cls, minor: int, version: str) -> Dialect:
        """Return the dialect of release 0.MINOR.

        Raises:
            ResponseError: the release is not supported.
        """
        if minor < OLDEST_MINOR:
            raise ResponseError(
                f"Headscale {version} is not supported. Upgrade it to 0.{OLDEST_MINOR} or newer, one minor version at "
                "a time.",
                upstream=UPSTREAM,
            )
        return cls(version, uses_user_ids=minor >= _USER_IDS_SINCE, uses_key_ids=minor >= _KEY_IDS_SINCE)

    def user_reference(self, user: User) -> str:
        """Return what requests about pre-auth keys contain for a user: the id or the name."""
        return user.id if self.uses_user_ids and user.id is not None else user.name


def dialect_of_version(text: object) -> Dialect | None:
    """Detect the dialect from a version such as "v0.28.0" or "0.30.0-beta.1"; None for other texts, such as "dev"."""
    match = _VERSION.fullmatch(text) if isinstance(text, str) else None
    # Builds of an untagged commit report v0.0.0-<date>-<hash>.
    if match is None or match[1] == "0":
        return None
    return Dialect.of_minor(int(match[1]), match[0].removeprefix("v"))


def dialect_of_description(document: Any) -> Dialect | None:
    """Detect the dialect from the API description that a server serves: Swagger up to 0.29, then OpenAPI 3.

    Raises:
        ResponseError: the API is that of a release before 0.23.
    """
    match document:
        case {"openapi": str(), "paths": {"/api/v1/node": _}}:
            return Dialect.of_minor(30, "0.30 or newer")
        case {"paths": {"/api/v1/machine": _}, "definitions": dict()}:
            return Dialect.of_minor(22, "0.22 or older")
        case {"paths": {"/api/v1/preauthkey": {"delete": dict()}}, "definitions": dict()}:
            return Dialect.of_minor(28, "0.28 or 0.29")
        case {
            "paths": dict(),
            "definitions": {"v1CreatePreAuthKeyRequest": {"properties": {"user": {"format": "uint64"}}}},
        }:
            return Dialect.of_minor(26, "0.26 or 0.27")
        case {"paths": {"/api/v1/node": _}, "definitions": dict()}:
            return Dialect.of_minor(23, "0.23 to 0.25")
    return None


def dialect_of_help(text: str) -> Dialect | None:
    """Detect the dialect from the option `--user` in the help text of `headscale preauthkeys list`."""
    if "preauthkeys list" not in text:
        return None
    option = re.search(r"--user (string|uint)", text)
    if option is None:
        return Dialect.of_minor(28, "0.28 or newer")
    if option[1] == "uint":
        return Dialect.of_minor(26, "0.26 or 0.27")
    return Dialect.of_minor(23, "0.23 to 0.25")
