"""What prune would remove now, for a dry run; nothing is changed."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from lifecycle.clients.cloudflare.reader import CloudflareReader
from lifecycle.clients.headscale.reader import HeadscaleReader
from lifecycle.domain.errors import PruneLimitError
from lifecycle.prune.observe import observe, prune_config
from lifecycle.prune.plan import PruneWorkload, check_limit, plan_prune
from lifecycle.settings.models import PruneSettings


@dataclass(frozen=True, slots=True)
class Preview:
    """A plan.

    Attributes:
        refusal: why a run would remove nothing; None if it would remove the workloads.
    """

    workloads: tuple[PruneWorkload, ...]
    refusal: PruneLimitError | None = None


def preview(
    settings: PruneSettings,
    *,
    name: str | None,
    headscale: HeadscaleReader,
    cloudflare: CloudflareReader,
    now: datetime,
) -> Preview:
    """Return what a run would remove.

    Raises:
        LifecycleError: an upstream could not be read, or the workload that was named has no record of ours.
    """
    config = prune_config(settings, name=name)
    seen = observe(settings, headscale=headscale, cloudflare=cloudflare)
    workloads = plan_prune(seen, config=config, now=headscale.server_time(now))
    try:
        check_limit(workloads, config=config)
    except PruneLimitError as error:
        return Preview(tuple(workloads), error)
    return Preview(tuple(workloads))
