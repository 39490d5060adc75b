"""Read everything that cleanup needs for its plan. Nothing is changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from time import monotonic

from lifecycle.cleanup.machine_key import public_machine_key
from lifecycle.cleanup.plan import CleanupConfig, Observation, SavedState
from lifecycle.domain.errors import AuthError, LifecycleError, NotFoundError, ResponseError
from lifecycle.domain.model import Record
from lifecycle.domain.ownership import NodeOwnership, choose_user
from lifecycle.readers import Readers
from lifecycle.runtime.background import in_background
from lifecycle.runtime.deadline import time_budget
from lifecycle.settings.models import CleanupSettings

ReadState = Callable[[], Mapping[str, bytes] | None]
"""Returns the values of tailscale's state Secret; None if the Secret does not exist."""


def cleanup_config(settings: CleanupSettings) -> CleanupConfig:
    """Return the part of the settings that the plan needs."""
    return CleanupConfig(
        main_name_ownership=settings.main_name_ownership,
        further_name_ownerships=settings.further_name_ownerships,
        key_spec=settings.key_spec,
        keep_node=settings.node_policy == "keep",
        keep_name_resolving=settings.dns_cleanup == "keep",
    )


def observe(settings: CleanupSettings, readers: Readers, *, read_state: ReadState | None) -> Observation:
    """Read Headscale, with retries. At the same time, read Cloudflare once, for at most HTTP_TIMEOUT.

    Args:
        read_state: reads tailscale's state Secret; None unless NODE_POLICY=keep.

    Raises:
        ApiError: Headscale or the state Secret could not be read, after all retries.
        UserError: it cannot be determined which Headscale user owns the pod's node.
    """
    headscale = readers.headscale
    timeout_s = settings.http_timeout.total_seconds()
    deadline = monotonic() + timeout_s

    def read_records() -> tuple[Record, ...]:
        with time_budget(timeout_s):
            return tuple(readers.cloudflare.records(settings.record_name, comment=settings.workload_mark))

    # Reading the Cloudflare token from a file can block without a time limit, so a thread reads the records.
    reading = in_background(read_records, name="records")
    detection = in_background(headscale.detect_version, name="version")
    try:
        user = choose_user(headscale.users(), settings.headscale_user)
        node_ownership = NodeOwnership(settings.node_hostname, user, settings.authkey_tags)
        nodes = tuple(headscale.nodes())
    except (AuthError, NotFoundError, ResponseError):
        # If the server is not Headscale or has an unsupported release, `version` raises an error that says so.
        headscale.version()
        raise
    # Wait until the detection has ended. If it failed, `version` repeats it.
    detection.exception()
    version = headscale.version()
    state = saved_state(read_state()) if read_state is not None else None
    records: tuple[Record, ...] | LifecycleError
    try:
        records = reading.result(max(0.0, deadline - monotonic()))
    except TimeoutError:
        records = LifecycleError("Cloudflare did not respond within HTTP_TIMEOUT")
    except LifecycleError as error:
        records = error
    except OSError as error:
        # The system refused the thread.
        records = LifecycleError(f"Cloudflare could not be read ({error.strerror})")
    return Observation(version, node_ownership, nodes, records, state)


def saved_state(values: Mapping[str, bytes] | None) -> SavedState | None:
    """Parse the values of tailscale's state Secret; None if the Secret does not exist."""
    if values is None:
        return None
    # `device_id` is the node's id in Headscale. `device_ips` is not used, because it may be of an earlier pod.
    node_id = values.get("device_id", b"").decode(errors="replace")
    return SavedState(node_id, public_machine_key(values.get("_machinekey", b"")))
