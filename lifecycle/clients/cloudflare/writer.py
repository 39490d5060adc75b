"""Change the records of one Cloudflare zone. Changes that are made together are one transaction."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from lifecycle.clients.cloudflare.errors import UPSTREAM
from lifecycle.clients.cloudflare.reader import CloudflareReader, malformed_response, parse_record
from lifecycle.clients.json_client import JsonClient
from lifecycle.domain.changes import CreateRecord, DeleteRecord, RecordChange, UpdateRecord
from lifecycle.domain.errors import ConflictError, NotFoundError, ResponseError
from lifecycle.domain.model import Record, RecordSpec


class CloudflareWriter(CloudflareReader):
    """A zone whose records may be changed. Only `lifecycle.apply` calls the methods defined here."""

    def __init__(self, client: JsonClient, *, domain: str, zone_id: str | None = None) -> None:
        super().__init__(client, domain=domain, zone_id=zone_id)
        # A record that was created at another name than requested shows that CLOUDFLARE_ZONE_ID is the wrong zone. All
        # later changes that create a record fail with this message.
        self._wrong_zone_message = ""

    def change(self, changes: Sequence[RecordChange]) -> None:
        """Make all of these changes or none.

        Raises:
            ConflictError: another record conflicts with a change, or a record was renamed since it was read.
            NotFoundError: a record to update does not exist, or a record to delete in a batch with other changes.
            ResponseError: a name belongs to another zone, or a changed record differs from what was requested.

        Requests: POST, PATCH or DELETE below /zones/{zone}/dns_records. For several changes, POST …/batch deletes, then
        updates, then creates. It accepts 200 records on every plan of Cloudflare.
        """
        path = f"{self.zone_path()}/dns_records"
        updates = [change for change in changes if isinstance(change, UpdateRecord)]
        creates = [change.spec for change in changes if isinstance(change, CreateRecord)]
        names = {spec.name for spec in creates}
        created: list[Record] = []
        changed: list[Record] = []
        if self._wrong_zone_message and names:
            raise ResponseError(self._wrong_zone_message, upstream=UPSTREAM)
        for name in names:
            self.check_zone(name)
        match changes:
            case []:
                return
            case [DeleteRecord(record)]:
                self._delete(path, record.id)
            case [UpdateRecord(record, spec)]:
                changed = [self._one("PATCH", f"{path}/{record.id}", parse_record, body=spec.differences(record))]
            case [CreateRecord(spec)]:
                created = [self._one("POST", path, parse_record, body=_create_body(spec))]
            case _:
                batch = {
                    "deletes": [{"id": change.record.id} for change in changes if isinstance(change, DeleteRecord)],
                    "patches": [
                        {"id": change.record.id, **change.spec.differences(change.record)} for change in updates
                    ],
                    "posts": [_create_body(spec) for spec in creates],
                }
                created, changed = self._one(
                    "POST",
                    f"{path}/batch",
                    _parse_batch,
                    body={operation: items for operation, items in batch.items() if items},
                )
        # Cloudflare appends the zone's name to a name that does not end with it.
        strays = [record for record in created if record.name not in names]
        if strays:
            self._wrong_zone_message = (
                f"Cloudflare created {strays[0].name} instead of {', '.join(sorted(names))}, which belongs to "
                "another zone. Set CLOUDFLARE_ZONE_ID to the id of the zone of DOMAIN_NAME, or leave it out."
            )
            for stray in strays:
                self._delete(path, stray.id)
            raise ResponseError(self._wrong_zone_message, upstream=UPSTREAM)
        _check_result(path, created, creates)
        _check_result(path, changed, [change.spec for change in updates])

    def _delete(self, path: str, record_id: str) -> None:
        # Another client may have deleted the record since it was read.
        with suppress(NotFoundError):
            self._one("DELETE", f"{path}/{record_id}", lambda _result: None)


def _create_body(spec: RecordSpec) -> dict[str, Any]:
    return {
        "type": spec.type,
        "name": spec.name,
        "content": str(spec.content),
        "ttl": spec.ttl_s,
        # This is the default, but is sent anyway. In an account with private routing, Cloudflare would accept a proxied
        # VPN address, and send the requests for it through a tunnel.
        "proxied": False,
        "comment": spec.comment,
    }


def _parse_batch(payload: Any) -> tuple[list[Record], list[Record]]:
    return (
        [parse_record(item) for item in payload.get("posts") or ()],
        [parse_record(item) for item in payload.get("patches") or ()],
    )


def _check_result(path: str, records: Sequence[Record], specs: Sequence[RecordSpec]) -> None:
    """Check that the records in a response are the requested ones.

    Raises:
        ConflictError: a record has another name than requested.
        ResponseError: the records differ in number or in other fields.
    """
    if len(records) != len(specs):
        raise malformed_response(f"a change of {path}")
    for record, spec in zip(records, specs, strict=True):
        if record.name != spec.name:
            raise ConflictError(
                f"Cloudflare: the {record.type} record {spec.name} was renamed to {record.name} since it was read.",
                upstream=UPSTREAM,
            )
        if differences := spec.differences(record):
            raise ResponseError(
                f"Cloudflare applied a change of {record.type} {record.name} only in part: "
                f"{', '.join(sorted(differences))} still differ.",
                upstream=UPSTREAM,
            )
