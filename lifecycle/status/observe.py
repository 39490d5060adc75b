"""Read everything that `lifecycle status` shows. Nothing is changed."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

from lifecycle.domain.errors import ApiError, LifecycleError
from lifecycle.domain.ownership import choose_user
from lifecycle.readers import Readers
from lifecycle.settings.models import StatusSettings
from lifecycle.status.assess import Observation, StatusConfig


def status_config(settings: StatusSettings) -> StatusConfig:
    """Return the settings that the states of the workloads depend on."""
    return StatusConfig(
        domain=settings.domain_name,
        mark=settings.mark,
        tags=settings.authkey_tags,
        vpn_prefixes=settings.vpn_prefixes,
        ipv6=settings.dns_ipv6,
    )


def observe(settings: StatusSettings, readers: Readers) -> Observation:
    """Read Headscale, then Cloudflare. The errors of failed reads are in `problems` of the result."""
    observation, problems = Observation(), []
    try:
        observation = replace(observation, users=readers.headscale.users())
        user = choose_user(observation.users, settings.headscale_user)
        observation = replace(observation, user=user, nodes=readers.headscale.nodes())
        # If the expiry cannot be read, the report says that it is unknown.
        with suppress(ApiError):
            observation = replace(observation, api_key_expires_at=readers.headscale.api_key_expires_at())
    except LifecycleError as error:
        problems.append(str(error))
    try:
        observation = replace(observation, apex=readers.cloudflare.check_zone(settings.domain_name))
        observation = replace(observation, records=readers.cloudflare.all_records())
    except LifecycleError as error:
        problems.append(str(error))
    return replace(observation, problems=problems)
