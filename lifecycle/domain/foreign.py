"""Foreign records: which of them block a DNS name of this workload, and what the operator can do about them.

A foreign record is a record at our name that this program does not own. If a foreign record blocks the name, this
program changes no record at the name.
"""

from __future__ import annotations

from lifecycle.domain.model import Record
from lifecycle.domain.ownership import MANAGED_TYPES, NameKind, RecordOwnership


def blocks(record: Record, *, record_ownership: RecordOwnership, ipv6: bool, apex: str | None) -> bool:
    """Return True if a record is foreign and blocks our name.

    Args:
        record: any record of the zone.
        record_ownership: our name, and the criteria for owning a record there.
        ipv6: True if this program manages AAAA records.
        apex: the zone's own name, where NS records are normal; None if it is unknown.
    """
    if record.name != record_ownership.name:
        return False
    if record.read_only and record.type in MANAGED_TYPES:
        return True
    if record_ownership.is_owned(record) or record_ownership.can_coexist(record):
        return False
    if record.type == "NS":
        return record.name != apex
    # DNS allows no other record beside the CNAME record of an alias.
    return record.type in {"A", "CNAME"} or (record.type == "AAAA" and ipv6) or record_ownership.kind is NameKind.ALIAS


_HOW_TO_AVOID_NAME = {
    NameKind.MAIN: "choose another TS_HOSTNAME",
    NameKind.ALIAS: "remove the name from DNS_ALIASES",
    NameKind.DOMAIN: "remove the name from DNS_ALIASES",
    NameKind.SHARED: "remove the name from DNS_SHARED_NAMES",
}


def advice_on_foreign_record(record: Record, *, record_ownership: RecordOwnership) -> str:
    """Return what the operator can do about a foreign record."""
    avoid_name = _HOW_TO_AVOID_NAME[record_ownership.kind]
    if record.read_only:
        return (
            "Another Cloudflare product manages it, such as a Workers custom domain. Remove it in that product "
            f"(Workers & Pages, the Worker's settings, Domains & Routes), or {avoid_name}."
        )
    if record.type == "NS":
        return f"The name is delegated to other name servers. Publish the record on those servers, or {avoid_name}."
    if record_ownership.kind is not NameKind.MAIN:
        return _advice_at_further_name(record, record_ownership, avoid_name)
    if record.type == "CNAME":
        return f"DNS allows no address record beside a CNAME record. Delete the CNAME record, or {avoid_name}."
    if not record.comment:
        return (
            f"It has no comment and its address is outside VPN_PREFIXES, so another application may use it. Delete it, "
            f"or {avoid_name}. To let this program manage it, set its comment to "
            f'"{record_ownership.mark}". It will then point to this pod and will not be proxied.'
        )
    # A record with a VPN address and no comment is ours.
    is_vpn_address = record.address is not None and record_ownership.is_vpn_address(record.address)
    comment_change = "clear its comment or change it" if is_vpn_address else "change its comment"
    return (
        f'To let this program manage it, {comment_change} to "{record_ownership.mark}". If it belongs to another '
        f"instance of this program, set DNS_OWNER to the owner in its comment. Otherwise delete it, or {avoid_name}."
    )


def _advice_at_further_name(record: Record, record_ownership: RecordOwnership, avoid_name: str) -> str:
    """Return the advice at a name in DNS_ALIASES or DNS_SHARED_NAMES."""
    if record.type not in MANAGED_TYPES:
        return (
            "The CNAME of an alias would hide it. Move the name to DNS_SHARED_NAMES, which uses address records, or "
            f"{avoid_name}."
        )
    return (
        f"It may belong to another workload or application. Delete it, or {avoid_name}. To let this program replace "
        f'it, set its comment to "{record_ownership.mark}".'
    )
