"""Notice that our node is really gone, and put a key into the file with which it can come back."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

import structlog

from lifecycle.clients.headscale.client import Headscale
from lifecycle.dns_watch.plan import Missing
from lifecycle.errors import KeyFileError
from lifecycle.keyfile import KeyFile
from lifecycle.mint import write_fresh_key
from lifecycle.model import PreAuthKey, User
from lifecycle.retry import jittered
from lifecycle.settings import DnsWatchSettings

log = structlog.get_logger()

# A Headscale that restarts, or a list that is short for a moment, says "gone" too: once, or for seconds.
CONFIRMING_LOOKS = 3
CONFIRMING_S = 60.0

# How long the file's key is left alone after a look at it; doubled with each key that was made in vain.
_FIRST_PAUSE_S = 60.0
_LONGEST_PAUSE_S = 3600.0

_REASONS = {
    Missing.GONE: "Headscale has no such node any more",
    Missing.EXPIRED: "the node has expired and has to log in again",
    Missing.STRANDED: "this pod has a VPN address that no node of Headscale has",
    Missing.UNREGISTERED: "the node is not registered",
}


class Healer:
    """Counts the looks that did not find our node, and acts when they leave no doubt.

    Attributes:
        lost: what is confirmed; None when nothing is.
        restart_helps: our node is confirmed lost, and there is a key in the file with which a restart of the
            tailscale container brings it back.
    """

    def __init__(
        self,
        settings: DnsWatchSettings,
        *,
        headscale: Headscale,
        key_file: KeyFile,
        now: Callable[[], datetime],
        monotonic: Callable[[], float],
    ) -> None:
        self._settings = settings
        self._headscale = headscale
        self._key_file = key_file
        self._now = now
        self._monotonic = monotonic
        self._seen: Missing | None = None
        self._looks = 0
        self._since = 0.0
        self._not_before = 0.0
        self._made = 0
        self.lost: Missing | None = None
        self.restart_helps = False

    def node_found(self) -> None:
        """Our node is there: all is forgotten."""
        if self.lost is not None:
            log.info("node.returned", after=str(self.lost))
        self.unsure()
        self.lost = None
        self.restart_helps = False
        self._made = 0
        self._not_before = 0.0

    def unsure(self) -> None:
        """A look failed or said nothing for sure: the looks before it are not in a row with the next ones."""
        self._seen = None
        self._looks = 0

    def node_missing(self, missing: Missing, *, user: User, superseded: bool) -> None:
        """Count a look that did not find our node; once there is no doubt, see to the key.

        Args:
            missing: what the look said.
            user: who owns our keys.
            superseded: a later pod of this service has the name; this one does not come back.

        Raises:
            ApiError: Headscale could not be asked about the key, or gave no new one.
        """
        now = self._monotonic()
        if missing is not self._seen:
            self._seen = missing
            self._looks = 0
            self._since = now
        self._looks += 1
        if self._looks < CONFIRMING_LOOKS or now - self._since < CONFIRMING_S:
            return
        if self.lost is not missing and missing is not Missing.UNREGISTERED:
            log.error(
                "node.lost",
                reason=_REASONS[missing],
                advice="restart the pod" + ("" if self._settings.self_heal else ", or set SELF_HEAL=true"),
            )
            self.lost = missing
        if superseded or now < self._not_before:
            return
        self._not_before = now + jittered(_FIRST_PAUSE_S)
        self._see_to_the_key(missing, user)

    def _see_to_the_key(self, missing: Missing, user: User) -> None:
        try:
            note = self._key_file.read_note()
            if note is None or note.pre_auth_key_id is None:
                # No volume is shared with this container, or `cleanup` has never run.
                return
            keys = self._headscale.pre_auth_keys(user)
            key = next((key for key in keys if key.id == note.pre_auth_key_id), None)
            if key is None or not key.usable(self._now()):
                if not self._settings.self_heal or not _worth_another(missing, key):
                    return
                self._make_key(user)
            elif missing is Missing.STRANDED and not self.restart_helps:
                # Nobody has used the key yet: what this pod's address is of, is not known.
                return
        except KeyFileError as error:
            log.error("key_file.unwritable", error=str(error))
            return
        self.restart_helps = missing is not Missing.UNREGISTERED

    def _make_key(self, user: User) -> None:
        spec = self._settings.key_spec(user)
        self._key_file.check_writable()
        write_fresh_key(spec, headscale=self._headscale, key_file=self._key_file, now=self._now())
        self._made += 1
        pause_s = min(_FIRST_PAUSE_S * 2.0 ** min(self._made, 16), _LONGEST_PAUSE_S)
        self._not_before = self._monotonic() + jittered(pause_s)


def _worth_another(missing: Missing, key: PreAuthKey | None) -> bool:
    """Whether a new key may bring the node back.

    An address that no node has is a deleted node's only if somebody did come in with this pod's key: else
    the tailscale container may be talking to another Headscale.
    """
    return missing is not Missing.STRANDED or (key is not None and key.used)
