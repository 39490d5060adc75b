"""Read everything that `lifecycle status` shows. Nothing is changed."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

from lifecycle.clients.cloudflare.reader import CloudflareReader
from lifecycle.clients.headscale.reader import HeadscaleReader
from lifecycle.domain.errors import ApiError, LifecycleError
from lifecycle.domain.ownership import choose_user
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


def observe(settings: StatusSettings, *, headscale: HeadscaleReader, cloudflare: CloudflareReader) -> Observation:
    """Read Headscale, then Cloudflare. A value that could not be read is None, and `problems` contains the error."""
    observation, problems = Observation(), []
    try:
        observation = replace(observation, users=headscale.users())
        user = choose_user(observation.users, settings.headscale_user)
        observation = replace(observation, user=user, nodes=headscale.nodes())
        with suppress(ApiError):
            observation = replace(observation, api_key_expires_at=headscale.api_key_expires_at())
    except LifecycleError as error:
        problems.append(str(error))
    try:
        observation = replace(observation, apex=cloudflare.check_zone(settings.domain_name))
        observation = replace(observation, records=cloudflare.all_records())
    except LifecycleError as error:
        problems.append(str(error))
    return replace(observation, problems=problems)
