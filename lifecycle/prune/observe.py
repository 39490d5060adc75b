"""Read everything that prune needs for its plan. Nothing is changed."""

from __future__ import annotations

from lifecycle.clients.cloudflare.reader import CloudflareReader
from lifecycle.clients.headscale.reader import HeadscaleReader
from lifecycle.domain.ownership import choose_user, marked_workload
from lifecycle.prune.plan import Observation, PruneConfig
from lifecycle.settings.models import PruneSettings


def prune_config(settings: PruneSettings, *, name: str | None) -> PruneConfig:
    """Return the settings as a value that pure functions can take."""
    return PruneConfig(
        name=name,
        domain=settings.domain_name,
        mark=settings.mark,
        tags=settings.authkey_tags,
        min_offline=settings.prune_after,
        max_workloads=settings.prune_max,
    )


def observe(settings: PruneSettings, *, headscale: HeadscaleReader, cloudflare: CloudflareReader) -> Observation:
    """Read Headscale, then Cloudflare.

    Raises:
        ApiError: Headscale or Cloudflare could not be read.
        UserError: the Headscale user that owns our nodes cannot be determined.
    """
    user = choose_user(headscale.users(), settings.headscale_user)
    nodes = tuple(headscale.nodes())
    mark = settings.mark
    records = tuple(record for record in cloudflare.all_records(comment_start=mark) if marked_workload(record, mark))
    return Observation(user, nodes, records)
