"""Make a fresh pre-auth key and put it where the tailscale container reads it."""

from __future__ import annotations

from datetime import datetime

import structlog

from lifecycle.clients.headscale.client import Headscale
from lifecycle.errors import ApiError, KeyFileError
from lifecycle.keyfile import KeyFile, KeyNote
from lifecycle.model import KeySpec, PreAuthKey

log = structlog.get_logger()


def write_fresh_key(
    spec: KeySpec, *, headscale: Headscale, key_file: KeyFile, now: datetime, kept_node_id: str | None = None
) -> PreAuthKey:
    """Replace the key in the file by one that was just made.

    Args:
        spec: what the key should be.
        headscale: where it is made.
        key_file: found writable before; an older key in it stays until the new one is whole.
        now: aware UTC.
        kept_node_id: the node whose state this pod keeps, for the note beside the key.

    Raises:
        ApiError: no key was made, or none of use.
        KeyFileError: it could not be written, and is expired again.
    """
    key = headscale.create_pre_auth_key(spec, now=now)
    log.info("pre_auth_key.created", key_id=key.id, user=spec.user.name, expires_at=key.expires_at)
    try:
        key_file.write(key.secret, KeyNote(pre_auth_key_id=key.id, kept_node_id=kept_node_id))
    except KeyFileError:
        _expire_unwritten(key, spec, headscale)
        raise
    log.info("key_file.written", path=str(key_file.path), key_id=key.id)
    return key


def _expire_unwritten(key: PreAuthKey, spec: KeySpec, headscale: Headscale) -> None:
    try:
        headscale.expire_pre_auth_key(key, spec.user)
    except ApiError as error:
        # It expires by itself, and nobody knows it.
        log.warning("pre_auth_key.unexpired", key_id=key.id, expires_at=key.expires_at, error=str(error))
    else:
        log.info("pre_auth_key.expired", key_id=key.id, reason="it could not be written")
