"""Records of other owners at our name: which ones prevent every change, and what to do about them; pure."""

from __future__ import annotations

from lifecycle.domain.model import Record
from lifecycle.domain.ownership import RecordIdentity


def blocks(record: Record, *, identity: RecordIdentity, ipv6: bool, apex: str | None) -> bool:
    """Return True if the record prevents every change at our name.

    Args:
        record: any record of the zone.
        identity: criteria for owning a record.
        ipv6: AAAA records are managed.
        apex: the zone's own name, where NS records are normal; None if it is not known.
    """
    if record.name != identity.name:
        return False
    if record.read_only or record.type == "CNAME":
        return True
    match record.type:
        case "NS":
            return record.name != apex
        case "A":
            return not identity.owns_record(record)
        case "AAAA":
            return ipv6 and not identity.owns_record(record)
    return False


def advice_on_foreign_record(record: Record, *, identity: RecordIdentity) -> str:
    """Return what the operator can do about a foreign record at our name."""
    if record.read_only:
        return (
            "Another Cloudflare product manages it, such as a Workers custom domain. Remove it there (Workers & Pages, "
            "the Worker's settings, Domains & Routes), or choose another TS_HOSTNAME."
        )
    if record.type == "CNAME":
        return "A CNAME allows no address record beside it. Delete it, or give the workload another TS_HOSTNAME."
    if record.type == "NS":
        return "The name is delegated to other name servers. Publish it there, or choose another TS_HOSTNAME."
    if not record.comment:
        return (
            "It has no comment and its address is outside VPN_PREFIXES, so another application may use it. Delete it "
            "or choose another TS_HOSTNAME. To let this program manage it, set its comment to "
            f'"{identity.mark}". It will then point to this pod and will not be proxied.'
        )
    is_vpn_address = record.address is not None and identity.is_vpn_address(record.address)
    comment_change = "clear its comment or change it" if is_vpn_address else "change its comment"
    return (
        f'To let this program manage it, {comment_change} to "{identity.mark}". If it belongs to another instance of '
        "this program, set DNS_OWNER to that owner. Otherwise delete it, or choose another TS_HOSTNAME."
    )
