"""What cleanup would do now, for a dry run; nothing is changed."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from lifecycle.cleanup.observe import ReadState, cleanup_config, observe
from lifecycle.cleanup.plan import Observation, Plan, plan_cleanup
from lifecycle.clients.cloudflare.reader import CloudflareReader
from lifecycle.clients.headscale.reader import HeadscaleReader
from lifecycle.settings.models import CleanupSettings


@dataclass(frozen=True, slots=True)
class Preview:
    """A plan, and what it is based on."""

    seen: Observation
    plan: Plan


def preview(
    settings: CleanupSettings,
    *,
    headscale: HeadscaleReader,
    cloudflare: CloudflareReader,
    read_state: ReadState | None,
    now: datetime,
) -> Preview:
    """Return what a run would change.

    Raises:
        LifecycleError: Headscale could not be read, or the run would refuse to change anything.
    """
    seen = observe(settings, headscale=headscale, cloudflare=cloudflare, read_state=read_state)
    return Preview(seen, plan_cleanup(seen, config=cleanup_config(settings), now=headscale.server_time(now)))
