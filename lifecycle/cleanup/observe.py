"""Read everything that cleanup's plan needs; nothing is changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import timedelta
from time import monotonic

from lifecycle.cleanup.machine_key import public_machine_key
from lifecycle.cleanup.plan import CleanupConfig, Observation, SavedState
from lifecycle.clients.cloudflare.reader import CloudflareReader
from lifecycle.clients.headscale.reader import HeadscaleReader
from lifecycle.domain.errors import LifecycleError
from lifecycle.domain.model import Record
from lifecycle.domain.ownership import RecordIdentity, choose_user
from lifecycle.runtime.background import in_background
from lifecycle.runtime.deadline import time_budget
from lifecycle.settings.models import CleanupSettings

ReadState = Callable[[], Mapping[str, bytes] | None]
"""Returns the values of tailscale's state Secret; None if the Secret does not exist."""


def cleanup_config(settings: CleanupSettings) -> CleanupConfig:
    """Return the settings as a value that pure functions can take."""
    return CleanupConfig(
        hostname=settings.node_hostname,
        tags=settings.authkey_tags,
        records=RecordIdentity(settings.record_name, settings.mark, settings.vpn_prefixes),
        key_spec=settings.key_spec,
        keep_node=settings.node_policy == "keep",
        leave_one_record=settings.dns_cleanup == "keep",
    )


def observe(
    settings: CleanupSettings,
    *,
    headscale: HeadscaleReader,
    cloudflare: CloudflareReader,
    read_state: ReadState | None,
) -> Observation:
    """Read Headscale and Cloudflare concurrently.

    Args:
        settings: of the command.
        headscale: is read with retries.
        cloudflare: is read once, for at most HTTP_TIMEOUT.
        read_state: None unless a node is to be kept.

    Raises:
        ApiError: Headscale or the state Secret could not be read, after all retries.
        UserError: our Headscale user cannot be determined.
    """
    zone = _ZoneReading(cloudflare, settings.record_name, timeout=settings.http_timeout)
    version = headscale.version()
    user = choose_user(headscale.users(), settings.headscale_user)
    nodes = tuple(headscale.nodes())
    state = saved_state(read_state()) if read_state is not None else None
    records, error = zone.result()
    return Observation(version, user, nodes, records, error, state)


def saved_state(values: Mapping[str, bytes] | None) -> SavedState | None:
    """Parse the values of tailscale's state Secret; None stays None."""
    if values is None:
        return None
    # Not `device_ips`, which may be those of an earlier pod. `device_id` is Headscale's own decimal id.
    node_id = values.get("device_id", b"").decode(errors="replace")
    return SavedState(node_id, public_machine_key(values.get("_machinekey", b"")))


class _ZoneReading:
    """Everything at one name, read in a background thread.

    Args:
        timeout: for the whole reading, from now on.
    """

    def __init__(self, cloudflare: CloudflareReader, name: str, *, timeout: timedelta) -> None:
        timeout_s = timeout.total_seconds()

        def read() -> tuple[Record, ...]:
            with time_budget(timeout_s):
                return tuple(cloudflare.records(name))

        self._deadline = monotonic() + timeout_s
        # Reading the token's file can block, which no time budget ends.
        self._records = in_background(read, name="zone")

    def result(self) -> tuple[tuple[Record, ...] | None, LifecycleError | None]:
        """Return the records, or None and why they could not be read."""
        try:
            return self._records.result(max(0.0, self._deadline - monotonic())), None
        except TimeoutError:
            return None, LifecycleError("Cloudflare did not respond within HTTP_TIMEOUT")
        except LifecycleError as error:
            return None, error
