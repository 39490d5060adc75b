"""Notice that our node is really gone, and put a key into the file with which it can come back."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

import structlog

from lifecycle.apply import write_fresh_key
from lifecycle.clients.headscale.writer import HeadscaleWriter
from lifecycle.dns_watch.plan import Loss, Missing
from lifecycle.domain.changes import WriteFreshKey
from lifecycle.domain.errors import KeyFileError
from lifecycle.domain.model import PreAuthKey, User
from lifecycle.keyfile.writer import KeyFileWriter
from lifecycle.runtime.retry import jittered
from lifecycle.settings.models import DnsWatchSettings

log = structlog.get_logger()

# A Headscale that restarts, or a list that is short for a moment, says "gone" too: once, or for seconds.
CONFIRMING_OBSERVATIONS = 3
CONFIRMING = timedelta(minutes=1)

# How long the file's key is left alone after a look at it; doubled with each key that was made in vain.
_FIRST_PAUSE_S = 60.0
_LONGEST_PAUSE_S = 3600.0

_REASONS = {
    Missing.GONE: "Headscale has no such node any more",
    Missing.EXPIRED: "the node has expired and has to log in again",
    Missing.STRANDED: "this pod has a VPN address that no node of Headscale has",
}


class Healer:
    """Counts the looks that did not find our node, and acts when they leave no doubt.

    Attributes:
        lost: what is confirmed; None when nothing is.
    """

    def __init__(
        self,
        settings: DnsWatchSettings,
        *,
        headscale: HeadscaleWriter,
        key_file: KeyFileWriter,
        now: Callable[[], datetime],
        monotonic: Callable[[], float],
    ) -> None:
        self._settings = settings
        self._headscale = headscale
        self._key_file = key_file
        self._now = now
        self._monotonic = monotonic
        self._confirming_s = CONFIRMING.total_seconds()
        # What the last look said: what is missing, and whether a later pod has the name; None = nothing for sure.
        self._seen: tuple[Missing, bool] | None = None
        self._looks = 0
        self._since = 0.0
        self._not_before = 0.0
        self._attempts = 0
        self._superseded = False
        self._changed_at = monotonic()
        # With what the node can come back; None = with nothing that is known.
        self._key: PreAuthKey | None = None
        self._complained = False
        self.lost: Missing | None = None

    @property
    def restart_helps(self) -> bool:
        """Whether a restart of the tailscale container brings the node back.

        Our node is confirmed gone or expired, and the last look said so too; nobody else has its name, there is a
        fresh key in the file, and no restart is under way already: the VPN interface has not changed for as long as
        confirming takes. Of a stranded pod it is not known which node it had: Headscale's own word that it is gone
        cannot be had.
        """
        return (
            self._seen is not None
            and self.lost in (Missing.GONE, Missing.EXPIRED)
            and not self._superseded
            and self._key is not None
            and self._key.usable(self._now())
            and self._monotonic() - self._changed_at >= self._confirming_s
        )

    def node_found(self) -> None:
        """Our node is there: all is forgotten."""
        if self.lost is not None:
            log.info("node.returned", after=str(self.lost))
        self.unsure()
        self.lost = None
        self._key = None
        self._superseded = False
        self._attempts = 0
        self._not_before = 0.0

    def unsure(self) -> None:
        """A look failed or said nothing for sure: the looks before it are not in a row with the next ones."""
        self._seen = None
        self._looks = 0

    def interface_changed(self) -> None:
        """The VPN interface of this pod came, went or has another address: tailscale may just be starting."""
        self._changed_at = self._monotonic()

    def node_missing(self, loss: Loss, *, user: User, superseded: bool) -> None:
        """Count a look that did not find our node; once there is no doubt, see to the key.

        Args:
            loss: what the look said.
            user: who owns our keys.
            superseded: a later pod of this service has the name; this one does not come back.

        Raises:
            ApiError: Headscale could not be asked about the key, or gave no new one.
        """
        now = self._monotonic()
        look = (loss.kind, superseded)
        if look != self._seen:
            self._seen = look
            self._looks = 0
            self._since = now
        self._looks += 1
        confirmed = self._looks >= CONFIRMING_OBSERVATIONS and now - self._since >= self._confirming_s
        # That somebody has the name counts at once; that nobody has it any more is confirmed as a loss is.
        if superseded or confirmed:
            self._superseded = superseded
        if confirmed:
            self._note_loss(loss)
        due = confirmed and now >= self._not_before
        # The key with which a restart is said to help is looked at each time: once it is used, no other restart does.
        if superseded or not (due or self.restart_helps):
            return
        try:
            self._see_to_the_key(loss, user, due=due)
        except KeyFileError as error:
            log.error("key_file.unwritable", error=str(error))

    def _note_loss(self, loss: Loss) -> None:
        if self.lost is loss.kind or loss.kind is Missing.UNREGISTERED:
            return
        self.lost = loss.kind
        log.error(
            "node.lost",
            node_id=loss.node_id,
            reason=_REASONS[loss.kind],
            advice="restart the pod" + ("" if self._settings.self_heal else ", or set SELF_HEAL=true"),
        )

    def _see_to_the_key(self, loss: Loss, user: User, *, due: bool) -> None:
        """Find the file's key good, or replace it if that is due.

        Raises:
            ApiError: Headscale could not be asked about the key, or gave no new one.
            KeyFileError: the note makes no sense, or nothing can be written here.
        """
        if due:
            self._not_before = self._monotonic() + jittered(_FIRST_PAUSE_S)
        note = self._key_file.read_metadata()
        if note is None or note.pre_auth_key_id is None:
            self._complain_of_no_note()
            return
        key = next((key for key in self._headscale.pre_auth_keys(user) if key.id == note.pre_auth_key_id), None)
        if key is not None and key.usable(self._now()) and self._key_file.holds(note):
            # An address that no node has, and a key that nobody has used: the tailscale container may be
            # talking to another Headscale.
            self._key = None if loss.kind is Missing.STRANDED and self._key is None else key
            return
        self._key = None
        if due and self._settings.self_heal and not (loss.kind is Missing.STRANDED and key is None):
            was_here = loss.kind is not Missing.STRANDED or (key is not None and key.used)
            # Noted, and not in the file, for which a process was killed in between: nobody will use it.
            lost = key if key is not None and key.usable(self._now()) else None
            fresh = self._make_key(user, kept_node_id=loss.node_id or note.kept_node_id, instead_of=lost)
            self._key = fresh if was_here else None

    def _make_key(self, user: User, *, kept_node_id: str | None, instead_of: PreAuthKey | None) -> PreAuthKey:
        """Make a key, and note beside it which node is to come back: an expired one does as itself."""
        # Before the first request, so that what fails each time is tried more and more rarely too.
        self._attempts += 1
        pause_s = min(_FIRST_PAUSE_S * 2.0 ** min(self._attempts, 16), _LONGEST_PAUSE_S)
        self._not_before = self._monotonic() + jittered(pause_s)
        change = WriteFreshKey(
            self._settings.key_spec(user),
            reason="the node needs a key to register again",
            kept_node_id=kept_node_id,
            replaces=instead_of,
        )
        return write_fresh_key(change, headscale=self._headscale, key_file=self._key_file, now=self._now())

    def _complain_of_no_note(self) -> None:
        """Say once that the key volume is not shared with this container, or that `cleanup` has never run."""
        if self._settings.self_heal and not self._complained:
            self._complained = True
            log.error(
                "key_file.unwritable",
                error=f"SELF_HEAL: there is no {self._key_file.metadata_path}; mount the volume that cleanup writes to",
            )
