"""Change the records of one Cloudflare zone, several as one transaction."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from lifecycle.clients.cloudflare.errors import UPSTREAM
from lifecycle.clients.cloudflare.reader import CloudflareReader, no_sense, parse_record
from lifecycle.clients.json_client import JsonClient
from lifecycle.domain.errors import ConflictError, NotFoundError, ResponseError
from lifecycle.domain.model import Record, RecordSpec


class CloudflareWriter(CloudflareReader):
    """A zone whose records may be changed. Only `lifecycle.apply` calls the methods defined here.

    Args:
        client: its base address ends in `/client/v4`.
        domain: the domain; the zone is the longest of its suffixes that Cloudflare has.
        zone_id: the zone, when it is known; saves the search.
    """

    def __init__(self, client: JsonClient, *, domain: str, zone_id: str | None = None) -> None:
        super().__init__(client, domain=domain, zone_id=zone_id)
        # Records that were created under another name than requested and are not deleted yet.
        self._strays: list[Record] = []

    def change(
        self,
        *,
        deletes: Sequence[Record] = (),
        updates: Sequence[tuple[Record, RecordSpec]] = (),
        creates: Sequence[RecordSpec] = (),
    ) -> None:
        """Make all of these changes or none; several go as one transaction.

        Raises:
            ConflictError: something else stands at the name, or somebody changed a record first.
            NotFoundError: a record to be changed, or one of several to be deleted, is gone.
            ResponseError: what Cloudflare made of it is not what was asked for.

        Source: POST, PATCH and DELETE below /zones/{zone}/dns_records, and POST …/batch, which deletes,
        then changes, then creates, and takes 200 records on every plan.
        """
        path = f"{self.zone_path()}/dns_records"
        patches = [(record, spec, spec.differences(record)) for record, spec in updates]
        bodies = [_create_body(spec) for spec in creates]
        created: list[Record] = []
        changed: list[Record] = []
        self._delete_strays(path)
        match (deletes, patches, bodies):
            case ([], [], []):
                return
            case ([record], [], []):
                self._delete(path, record.id)
            case ([], [(record, _, fields)], []):
                changed = [self.one("PATCH", f"{path}/{record.id}", parse_record, body=fields)]
            case ([], [], [body]):
                created = [self.one("POST", path, parse_record, body=body)]
            case _:
                batch = {
                    "deletes": [{"id": record.id} for record in deletes],
                    "patches": [{"id": record.id, **fields} for record, _, fields in patches],
                    "posts": bodies,
                }
                created, changed = self.one(
                    "POST",
                    f"{path}/batch",
                    _parse_batch,
                    body={operation: items for operation, items in batch.items() if items},
                )
        self._take_back_strays(path, created, {spec.name for spec in creates})
        _check(path, created, creates)
        _check(path, changed, [spec for _, spec, _ in patches])

    def _delete(self, path: str, record_id: str) -> None:
        try:
            self.one("DELETE", f"{path}/{record_id}", lambda _result: None)
        except NotFoundError:
            # Somebody else did it.
            return

    def _take_back_strays(self, path: str, created: Sequence[Record], names: Collection[str]) -> None:
        """Take back what was made under another name: the zone's is appended to a full name that is not its own."""
        strays = [record for record in created if record.name not in names]
        self._strays += strays
        self._delete_strays(path)
        if strays:
            raise ResponseError(
                f"Cloudflare made {strays[0].name} of {', '.join(sorted(names))}: the zone is not that name's; the "
                "record was deleted again. Set CLOUDFLARE_ZONE_ID to the zone of DOMAIN_NAME, or leave it out",
                upstream=UPSTREAM,
            )

    def _delete_strays(self, path: str) -> None:
        """Delete them one by one; what fails is for the next change."""
        while self._strays:
            self._delete(path, self._strays[0].id)
            del self._strays[0]


def _create_body(spec: RecordSpec) -> dict[str, Any]:
    return {
        "type": spec.type,
        "name": spec.name,
        "content": str(spec.address),
        "ttl": spec.ttl_s,
        # Always said: where private routing is on, a proxied VPN address would go through a tunnel.
        "proxied": False,
        "comment": spec.comment,
    }


def _parse_batch(payload: Any) -> tuple[list[Record], list[Record]]:
    return (
        [parse_record(item) for item in payload.get("posts") or ()],
        [parse_record(item) for item in payload.get("patches") or ()],
    )


def _check(path: str, records: Sequence[Record], specs: Sequence[RecordSpec]) -> None:
    """Compare what Cloudflare says it did with what was asked for."""
    if len(records) != len(specs):
        raise no_sense(f"a change of {path}")
    for record, spec in zip(records, specs, strict=True):
        if record.name != spec.name:
            raise ConflictError(
                f"Cloudflare: the {record.type} record {spec.name} got another name, {record.name}, since it was read; "
                "the next look will tell what stands there",
                upstream=UPSTREAM,
            )
        if spec.differences(record):
            raise ResponseError(
                f"Cloudflare did not take all of a change to {record.type} {record.name}: "
                f"{', '.join(sorted(spec.differences(record)))} still differ",
                upstream=UPSTREAM,
            )
