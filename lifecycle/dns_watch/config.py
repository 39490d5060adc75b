"""The settings that dns-watch's decisions depend on."""

from __future__ import annotations

from lifecycle.dns_watch.state import WatchConfig
from lifecycle.domain.ownership import RecordIdentity
from lifecycle.settings.models import DnsWatchSettings


def watch_config(settings: DnsWatchSettings) -> WatchConfig:
    """Return the settings as a value that pure functions can take."""
    return WatchConfig(
        records=RecordIdentity(settings.record_name, settings.mark, settings.vpn_prefixes),
        hostname=settings.node_hostname,
        user=settings.headscale_user,
        tags=settings.authkey_tags,
        ttl_s=settings.dns_ttl,
        ipv6=settings.dns_ipv6,
        key_spec=settings.key_spec,
        key_path=str(settings.authkey_output_path),
        self_heal=settings.self_heal,
        retry_interval=settings.retry_interval,
        max_retries=settings.max_retries,
        poll_interval=settings.node_poll_interval,
        min_interval=settings.least_poll_interval,
        verify_interval=settings.verify_interval,
        has_interface=settings.tailscale_interface is not None and settings.tailscale_interface != "",
        warns_of_slow_polling=settings.access == "exec",
    )
