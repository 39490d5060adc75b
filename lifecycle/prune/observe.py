"""Read everything that prune needs for its plan. Nothing is changed."""

from __future__ import annotations

from lifecycle.domain.ownership import choose_user
from lifecycle.prune.plan import Observation, PruneConfig
from lifecycle.readers import Readers
from lifecycle.settings.models import PruneSettings


def prune_config(settings: PruneSettings, *, name: str | None) -> PruneConfig:
    """Return the settings that the plan depends on. `name` limits the plan to one workload."""
    return PruneConfig(
        name=name,
        domain=settings.domain_name,
        mark=settings.mark,
        tags=settings.authkey_tags,
        prune_after=settings.prune_after,
        prune_max=settings.prune_max,
    )


def observe(settings: PruneSettings, readers: Readers) -> Observation:
    """Read Headscale, then Cloudflare.

    Raises:
        ApiError: Headscale or Cloudflare could not be read, or the zone is not that of DOMAIN_NAME.
        UserError: it cannot be determined which Headscale user owns the nodes.
    """
    user = choose_user(readers.headscale.users(), settings.headscale_user)
    nodes = tuple(readers.headscale.nodes())
    readers.cloudflare.check_zone(settings.domain_name)
    return Observation(user, nodes, tuple(readers.cloudflare.all_records(comment_start=settings.mark)))
