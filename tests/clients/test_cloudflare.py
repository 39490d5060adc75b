"""Tests of the client of Cloudflare, with a simulator."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from ipaddress import ip_address
from typing import Any

import pytest

from lifecycle.clients.cloudflare.errors import CLOUDFLARE
from lifecycle.clients.cloudflare.writer import CloudflareWriter
from lifecycle.domain.changes import CreateRecord, DeleteRecord, UpdateRecord
from lifecycle.domain.errors import ApiError, AuthError, ConflictError, NotFoundError, ResponseError, TransientError
from lifecycle.domain.model import Record, RecordSpec
from tests.builders import COMMENT_OF_OTHER_OWNER, NAME, OUR_COMMENT, a_record, a_spec
from tests.simulators import faults
from tests.simulators.cloudflare import CloudflareSimulator, refusal
from tests.simulators.cloudflare import Record as SimulatedRecord
from tests.simulators.faults import Fault
from tests.world import ZONE, json_client

IPV6_SPEC = RecordSpec(NAME, ip_address("fd7a:115c:a1e0::1"), 60, OUR_COMMENT)


class Account(CloudflareSimulator):
    """A simulated Cloudflare account with one zone, which contains NAME."""

    def __init__(self) -> None:
        super().__init__()
        self.zone_id = self.add_zone(ZONE)

    def add(self, content: str, *, zone_id: str | None = None, **fields: Any) -> str:
        """Add a record, by default an A record of NAME with the comment of our records. Return its id."""
        defaults: dict[str, Any] = {"type": "A", "name": NAME, "ttl": 60, "comment": OUR_COMMENT}
        return self.add_record(zone_id or self.zone_id, content=content, **(defaults | fields))

    def records_at_name(self) -> list[SimulatedRecord]:
        """Return the records of NAME."""
        return self.records(self.zone_id, NAME)


@pytest.fixture
def account() -> Account:
    return Account()


def client_of(account: Account, zone_id: str | None, *, domain: str = ZONE) -> CloudflareWriter:
    client = json_client(
        account.handle,
        CLOUDFLARE,
        base_url="http://cloudflare/client/v4",
        read_token=lambda: account.token,
    )
    return CloudflareWriter(client, domain=domain, zone_id=zone_id)


@pytest.fixture
def cloudflare(account: Account) -> CloudflareWriter:
    return client_of(account, account.zone_id)


def sent_changes(account: Account) -> list[tuple[str, str, Any]]:
    """Return the method, the path below `dns_records` and the JSON body of each write."""
    return [
        (write.method, write.path.partition("/dns_records")[2], json.loads(write.body) if write.body else None)
        for write in account.writes
    ]


def create(spec: RecordSpec | None = None) -> CreateRecord:
    return CreateRecord(spec or a_spec(), reason="no record exists")


def update(record: Record) -> UpdateRecord:
    return UpdateRecord(record, a_spec(), reason="it differs")


def delete(record: Record) -> DeleteRecord:
    return DeleteRecord(record, reason="duplicate")


# --- Reading -------------------------------------------------------------------------------------------


def test_records_of_every_type_at_the_exact_name_are_read(account: Account, cloudflare: CloudflareWriter) -> None:
    account.add("100.64.0.1")
    account.add("fd7a:115c:a1e0::1", type="AAAA", comment=None)
    account.add("v=spf1 -all", type="TXT", comment="mail")
    account.add("mx.example.com", type="MX", priority=10, ttl=1)
    account.add("198.51.100.7", proxied=True)
    for other_name in ("x.grafana.example.com", "xgrafana.example.com", "grafana.example.com.example.com", ZONE):
        account.add("100.64.0.9", name=other_name)
    assert {replace(record, id="") for record in cloudflare.records(NAME)} == {
        Record("", NAME, "A", "100.64.0.1", ttl_s=60, proxied=False, comment=OUR_COMMENT),
        Record("", NAME, "AAAA", "fd7a:115c:a1e0::1", ttl_s=60, proxied=False, comment=""),
        Record("", NAME, "TXT", "v=spf1 -all", ttl_s=60, proxied=False, comment="mail"),
        Record("", NAME, "MX", "mx.example.com", ttl_s=1, proxied=False, comment=OUR_COMMENT),
        Record("", NAME, "A", "198.51.100.7", ttl_s=1, proxied=True, comment=OUR_COMMENT),
    }


def test_one_request_reads_the_records_of_a_name_and_of_a_comment(
    account: Account, cloudflare: CloudflareWriter
) -> None:
    """The result contains the records at the name, and the records at any name that have exactly this comment."""
    comment = f"{OUR_COMMENT} {NAME}"
    account.add("100.64.0.1")
    account.add(NAME, type="CNAME", name="docs.example.com", comment=comment)
    for number, other_comment in enumerate((OUR_COMMENT, comment.upper(), f"{OUR_COMMENT} x{NAME}", None)):
        account.add(f"100.64.1.{number}", name="other.example.com", comment=other_comment)
    read = {(record.name, record.type) for record in cloudflare.records(NAME, comment=comment)}
    assert read == {(NAME, "A"), ("docs.example.com", "CNAME")}
    assert len(account.requests) == 1


def test_all_pages_are_read(account: Account, cloudflare: CloudflareWriter) -> None:
    for number in range(1, 131):
        account.add(f"100.64.0.{number}")
    assert len(cloudflare.records(NAME)) == 130
    assert [exchange.query.count("page=2") for exchange in account.requests] == [0, 1]


def test_name_without_records_needs_one_request(account: Account, cloudflare: CloudflareWriter) -> None:
    assert cloudflare.records(NAME) == []
    [request] = account.requests
    assert request.query == "name=grafana.example.com&page=1&per_page=100"


def a_page(*results: dict[str, Any], **totals: object) -> Fault:
    """Return a response with one page of records, and with totals of all pages."""
    body = {"success": True, "errors": [], "messages": [], "result": list(results), "result_info": totals}
    return faults.answer(200, json.dumps(body))


RECORD = {"id": "0" * 32, "type": "A", "name": NAME, "content": "100.64.0.1"}


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(a_page(RECORD, page=1, total_pages=1, total_count=2), id="fewer-than-the-total"),
        pytest.param(a_page(RECORD, page=1, total_pages=1, total_count=0), id="more-than-the-total"),
        pytest.param(a_page(page=1, total_pages=3, total_count=5), id="empty-page-of-three"),
        pytest.param(a_page(RECORD), id="no-total"),
        pytest.param(a_page({"id": "0" * 32}, total_pages=1, total_count=1), id="record-without-fields"),
        pytest.param(a_page({**RECORD, "content": 7}, total_pages=1, total_count=1), id="content-of-another-type"),
        pytest.param(faults.answer(200, '{"success": false, "errors": [], "result": []}'), id="without-success"),
        pytest.param(faults.answer(200, '{"success": true, "result": null}'), id="null"),
        pytest.param(faults.answer(200, '{"success": true, "result": {}}'), id="object"),
        pytest.param(faults.answer(200, "[]"), id="list"),
        pytest.param(faults.html(200), id="html"),
    ],
)
def test_malformed_response_is_an_error(account: Account, cloudflare: CloudflareWriter, fault: Fault) -> None:
    account.faults.add(fault)
    with pytest.raises(ResponseError):
        cloudflare.records(NAME)


@pytest.mark.parametrize("pages", [2, 10**9], ids=["as-if-complete", "as-if-endless"])
def test_repeated_page_is_an_error(account: Account, cloudflare: CloudflareWriter, pages: int) -> None:
    account.faults.add(a_page(RECORD, total_pages=pages, total_count=pages), times=3)
    with pytest.raises(ResponseError):
        cloudflare.records(NAME)
    assert len(account.requests) == 2


def test_additional_and_missing_members_are_tolerated(account: Account, cloudflare: CloudflareWriter) -> None:
    account.faults.add(a_page({**RECORD, "name": "GRAFANA.example.com.", "new": [1]}, total_pages=1, total_count=1))
    assert cloudflare.records(NAME) == [a_record("0" * 32, ttl_s=1, comment="")]


# --- The zone ------------------------------------------------------------------------------------------


def zones_requested(account: Account) -> list[str]:
    """Return the names of the zones that were searched."""
    return [
        exchange.query.partition("name=")[2].partition("&")[0]
        for exchange in account.requests
        if exchange.path.endswith("/zones")
    ]


def test_zone_is_searched_once_from_the_domain_to_its_parents(account: Account) -> None:
    cloudflare = client_of(account, None, domain="svc.eu.example.com")
    account.add("100.64.0.1")
    assert len(cloudflare.records(NAME)) == 1
    cloudflare.records(NAME)
    assert zones_requested(account) == ["svc.eu.example.com", "eu.example.com", "example.com"]


def test_top_level_domain_is_not_searched_as_a_zone(account: Account) -> None:
    with pytest.raises(ResponseError, match=r"DOMAIN_NAME.*eu\.example\.org.*CLOUDFLARE_ZONE_ID"):
        client_of(account, None, domain="eu.example.org").records(NAME)
    assert zones_requested(account) == ["eu.example.org", "example.org"]


def test_two_zones_of_one_name_are_listed_by_id(account: Account) -> None:
    ids = sorted([account.zone_id, account.add_zone(ZONE)])
    with pytest.raises(ResponseError, match=f"CLOUDFLARE_ZONE_ID.*{ids[0]}, {ids[1]}"):
        client_of(account, None).records(NAME)
    assert account.writes == []


@pytest.mark.parametrize(
    "fault", [faults.html(502), faults.drop(), faults.html(200), faults.too_many_requests(5), refusal(403, 9109)]
)
def test_failed_request_ends_the_search_for_the_zone(account: Account, fault: Fault) -> None:
    """If the search went on, the parent domain's zone would be used, although the domain has its own zone."""
    child = account.add_zone("eu.example.com")
    cloudflare = client_of(account, None, domain="eu.example.com")
    account.faults.add(fault, path="name=eu")
    with pytest.raises(ApiError):
        cloudflare.records(NAME)
    assert zones_requested(account) == ["eu.example.com"]
    cloudflare.records(NAME)
    assert account.requests[-1].path.endswith(f"/zones/{child}/dns_records")


def test_zone_that_got_another_id_is_found_again(account: Account) -> None:
    """The id changes if the zone is removed from Cloudflare and added again. The parent domain's zone is not used."""
    child = account.add_zone("eu.example.com")
    cloudflare = client_of(account, None, domain="svc.eu.example.com")
    cloudflare.records("svc.eu.example.com")
    account.remove_zone(child)
    with pytest.raises(AuthError):
        cloudflare.records("svc.eu.example.com")
    with pytest.raises(ResponseError, match="has no zone"):
        cloudflare.records("svc.eu.example.com")
    added_again = account.add_zone("eu.example.com")
    cloudflare.records("svc.eu.example.com")
    assert account.requests[-1].path.endswith(f"/zones/{added_again}/dns_records")


# --- Changing ------------------------------------------------------------------------------------------


def test_create_sends_every_field(account: Account, cloudflare: CloudflareWriter) -> None:
    cloudflare.change([create(a_spec("100.64.0.1", ttl_s=120))])
    [(method, path, body)] = sent_changes(account)
    assert (method, path) == ("POST", "")
    assert body == {
        "type": "A",
        "name": NAME,
        "content": "100.64.0.1",
        "ttl": 120,
        "proxied": False,
        "comment": OUR_COMMENT,
    }
    assert len(account.records_at_name()) == 1


@pytest.mark.parametrize(
    ("old", "changed"),
    [
        pytest.param({"content": "100.64.0.9"}, {"content": "100.64.0.1"}, id="content"),
        pytest.param({"ttl": 300}, {"ttl": 60}, id="ttl"),
        pytest.param({"comment": None}, {"comment": OUR_COMMENT}, id="comment"),
        pytest.param(
            {"comment": COMMENT_OF_OTHER_OWNER, "ttl": 1}, {"comment": OUR_COMMENT, "ttl": 60}, id="comment-and-ttl"
        ),
        pytest.param(
            {"content": "198.51.100.7", "proxied": True},
            {"content": "100.64.0.1", "proxied": False, "ttl": 60},
            id="proxied",
        ),
    ],
)
def test_update_sends_only_the_fields_that_differ(
    account: Account, cloudflare: CloudflareWriter, old: dict[str, Any], changed: dict[str, Any]
) -> None:
    record_id = account.add(**({"content": "100.64.0.1"} | old))
    [record] = cloudflare.records(NAME)
    cloudflare.change([update(record)])
    assert sent_changes(account) == [("PATCH", f"/{record_id}", changed)]
    assert a_spec("100.64.0.1").differences(cloudflare.records(NAME)[0]) == {}


def test_several_changes_are_one_transaction(account: Account, cloudflare: CloudflareWriter) -> None:
    updated, deleted = account.add("100.64.0.1", ttl=300), account.add("100.64.0.2")
    records = {record.id: record for record in cloudflare.records(NAME)}
    cloudflare.change([delete(records[deleted]), update(records[updated]), create(IPV6_SPEC)])
    [(method, path, body)] = sent_changes(account)
    assert (method, path) == ("POST", "/batch")
    assert body["deletes"] == [{"id": deleted}]
    assert body["patches"] == [{"id": updated, "ttl": 60}]
    assert [item["type"] for item in body["posts"]] == ["AAAA"]
    assert [record.content for record in account.records_at_name()] == ["100.64.0.1", "fd7a:115c:a1e0::1"]


def test_failed_transaction_changes_nothing(account: Account, cloudflare: CloudflareWriter) -> None:
    first, second = account.add("100.64.0.1", ttl=300), account.add("100.64.0.2")
    records = {record.id: record for record in cloudflare.records(NAME)}
    account.remove_record(second)
    with pytest.raises(NotFoundError):
        cloudflare.change([delete(records[second]), update(records[first])])
    assert [record.ttl for record in account.records_at_name()] == [300]


def test_no_changes_need_no_request(account: Account, cloudflare: CloudflareWriter) -> None:
    cloudflare.change([])
    assert account.requests == []


def test_deletion_of_a_missing_record_succeeds(account: Account, cloudflare: CloudflareWriter) -> None:
    record_id = account.add("100.64.0.1")
    [record] = cloudflare.records(NAME)
    cloudflare.change([delete(record)])
    cloudflare.change([delete(record)])
    assert [write[:2] for write in sent_changes(account)] == [("DELETE", f"/{record_id}")] * 2
    assert [record.content for record in account.records_at_name()] == []


@pytest.mark.parametrize("body", ["<html>404</html>", "{}"])
def test_404_of_a_proxy_does_not_mean_a_missing_record(
    body: str, account: Account, cloudflare: CloudflareWriter
) -> None:
    account.add("100.64.0.9")
    account.faults.add(faults.answer(404, body), method="DELETE")
    with pytest.raises(TransientError):
        cloudflare.change([delete(record) for record in cloudflare.records(NAME)])


# --- Records created at another name -------------------------------------------------------------------


@pytest.fixture
def wrong_zone(account: Account) -> str:
    """The id of a zone that does not contain NAME. The token has no permission to read the zone's name."""
    zone_id = account.add_zone("example.org")
    account.faults.add(refusal(403, 9109), path=r"/zones/[0-9a-f]+$", times=None)
    return zone_id


def test_nothing_is_created_in_the_zone_of_another_name(account: Account) -> None:
    """Otherwise, Cloudflare would create a record at grafana.example.com.example.org."""
    wrong = account.add_zone("example.org")
    with pytest.raises(ResponseError, match=r"CLOUDFLARE_ZONE_ID.*example\.org.*grafana\.example\.com"):
        client_of(account, wrong).change([create()])
    assert account.writes == []


def test_nothing_is_created_while_the_name_of_the_zone_is_unknown(account: Account) -> None:
    account.faults.add(faults.html(502), path=r"/zones/[0-9a-f]+$")
    cloudflare = client_of(account, account.zone_id)
    with pytest.raises(TransientError):
        cloudflare.change([create()])
    assert account.writes == []
    cloudflare.change([create()])
    assert len(account.writes) == 1


@pytest.mark.parametrize(
    ("name", "is_in_zone"),
    [(ZONE, True), (NAME, True), (f"a.b.{ZONE}", True), (f"x{ZONE}", False), ("example.org", False), ("com", False)],
)
def test_only_names_in_the_zone_are_accepted(cloudflare: CloudflareWriter, name: str, is_in_zone: bool) -> None:
    if is_in_zone:
        assert cloudflare.check_zone(name) == ZONE
        return
    with pytest.raises(ResponseError, match="CLOUDFLARE_ZONE_ID"):
        cloudflare.check_zone(name)


def test_zone_that_the_token_cannot_read_is_not_checked(account: Account, wrong_zone: str) -> None:
    assert client_of(account, wrong_zone).check_zone(NAME) is None


def test_name_of_the_zone_is_read_once_for_all_changes(account: Account, cloudflare: CloudflareWriter) -> None:
    cloudflare.change([create(a_spec("100.64.0.1"))])
    cloudflare.change([create(a_spec("100.64.0.2"))])
    assert [exchange.method for exchange in account.requests] == ["GET", "POST", "POST"]


def test_records_at_another_name_are_deleted_and_not_created_again(account: Account, wrong_zone: str) -> None:
    """Cloudflare creates the records at grafana.example.com.example.org."""
    cloudflare = client_of(account, wrong_zone)
    for _ in range(3):
        with pytest.raises(ResponseError, match=r"grafana\.example\.com\.example\.org.*CLOUDFLARE_ZONE_ID"):
            cloudflare.change([create(), create(IPV6_SPEC)])
    assert account.records(wrong_zone) == []
    assert [write.method for write in account.writes] == ["POST", "DELETE", "DELETE"]


def test_wrong_zone_is_reported_even_if_the_record_there_cannot_be_deleted(account: Account, wrong_zone: str) -> None:
    cloudflare = client_of(account, wrong_zone)
    account.faults.add(faults.html(502), method="DELETE")
    with pytest.raises(TransientError):
        cloudflare.change([create()])
    with pytest.raises(ResponseError, match=r"grafana\.example\.com\.example\.org.*CLOUDFLARE_ZONE_ID"):
        cloudflare.change([create()])
    assert [write.method for write in account.writes] == ["POST", "DELETE"]


# --- Conflicts and malformed responses -----------------------------------------------------------------


def test_name_of_a_workers_domain_is_a_conflict(account: Account, cloudflare: CloudflareWriter) -> None:
    account.add_workers_domain(account.zone_id, NAME)
    [record] = cloudflare.records(NAME)
    assert (record.type, record.content, record.read_only) == ("AAAA", "100::", True)
    with pytest.raises(ConflictError, match=r"Workers.*81062"):
        cloudflare.change([create()])


def test_record_that_was_renamed_before_its_update_is_not_deleted(
    account: Account, cloudflare: CloudflareWriter
) -> None:
    """The client deletes records that it created at a wrong name, but not a record that another owner renamed."""
    record_id = account.add("100.64.0.9")
    [record] = cloudflare.records(NAME)
    account.change_record(record_id, name="wiki.example.com")
    with pytest.raises(ConflictError, match=r"wiki\.example\.com"):
        cloudflare.change([update(record)])
    assert [write.method for write in account.writes] == ["PATCH"]
    assert len(account.records(account.zone_id, "wiki.example.com")) == 1


def test_partly_applied_change_is_an_error(account: Account, cloudflare: CloudflareWriter) -> None:
    """Cloudflare confirms the update of content and TTL, but its response contains the old TTL."""
    account.add("100.64.0.9", ttl=300)
    [record] = cloudflare.records(NAME)
    response_record = {**RECORD, "ttl": 300, "comment": OUR_COMMENT, "proxied": False}
    account.faults.add(faults.answer(200, json.dumps({"success": True, "result": response_record})), method="PATCH")
    with pytest.raises(ResponseError, match="ttl"):
        cloudflare.change([update(record)])


@pytest.mark.parametrize("body", ["{}", '{"success": true, "result": []}', '{"success": true, "result": {"id": "1"}}'])
@pytest.mark.parametrize("method", ["POST", "PATCH"])
def test_malformed_response_to_a_change_is_an_error(
    account: Account, cloudflare: CloudflareWriter, method: str, body: str
) -> None:
    account.add("100.64.0.9")
    [record] = cloudflare.records(NAME)
    account.faults.add(faults.answer(200, body), method=method)
    with pytest.raises(ResponseError):
        cloudflare.change([update(record) if method == "PATCH" else create()])


def test_batch_response_with_fewer_records_is_an_error(account: Account, cloudflare: CloudflareWriter) -> None:
    body = json.dumps({"success": True, "result": {"posts": [], "patches": None}})
    account.faults.add(faults.answer(200, body), method="POST")
    with pytest.raises(ResponseError):
        cloudflare.change([create(), create(IPV6_SPEC)])


def test_create_with_a_lost_response_is_not_repeated(account: Account, cloudflare: CloudflareWriter) -> None:
    account.faults.add(faults.drop(after_execution=True), method="POST")
    with pytest.raises(TransientError):
        cloudflare.change([create()])
    assert len(account.writes) == 1
    assert len(cloudflare.records(NAME)) == 1


# --- Refusals ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "kind", "pattern"),
    [
        pytest.param(refusal(403, 9109), AuthError, "CLOUDFLARE_API_TOKEN.*IP", id="9109"),
        pytest.param(refusal(400, 10001), AuthError, "CLOUDFLARE_API_TOKEN", id="10001"),
        pytest.param(refusal(403, 10000), AuthError, "Zone / DNS / Edit.*CLOUDFLARE_ZONE_ID", id="10000-403"),
        pytest.param(refusal(401, 10000), AuthError, "Zone / DNS / Edit", id="10000-401"),
        pytest.param(refusal(400, 6003), AuthError, "CLOUDFLARE_API_TOKEN", id="6003"),
        pytest.param(refusal(400, 9106), AuthError, "CLOUDFLARE_API_TOKEN", id="9106"),
        pytest.param(refusal(401, 4711), AuthError, "CLOUDFLARE_API_TOKEN", id="401-with-another-code"),
        pytest.param(refusal(403, 4711), AuthError, "CLOUDFLARE_API_TOKEN", id="403-with-another-code"),
        pytest.param(faults.html(403), ResponseError, "firewall", id="403-html"),
        pytest.param(refusal(400, 7003), ResponseError, "CLOUDFLARE_ZONE_ID", id="7003-400"),
        pytest.param(refusal(404, 7003), ResponseError, "CLOUDFLARE_ZONE_ID", id="7003-404"),
        pytest.param(refusal(404, 7000), ResponseError, "CLOUDFLARE_ZONE_ID", id="7000"),
        pytest.param(refusal(403, 1038), ResponseError, "1038", id="1038"),
        pytest.param(refusal(404, 81044), NotFoundError, "81044", id="81044-404"),
        pytest.param(refusal(400, 81044), NotFoundError, "81044", id="81044-400"),
        pytest.param(faults.html(404), TransientError, "CLOUDFLARE_API_URL", id="404-html"),
        pytest.param(faults.answer(404, "{}"), TransientError, "CLOUDFLARE_API_URL", id="404-of-a-proxy"),
        *(
            pytest.param(refusal(400, code), ConflictError, str(code), id=str(code))
            for code in (81053, 81054, 81057, 81058)
        ),
        *(
            pytest.param(refusal(400, code), ConflictError, f"Workers.*{code}", id=f"{code}-name-in-use")
            for code in (81050, 81055, 81056, 81060, 81062, 81069)
        ),
        pytest.param(refusal(400, 81045), ConflictError, "81045", id="81045"),
        pytest.param(refusal(400, 9005), ResponseError, "code 9005", id="9005"),
        pytest.param(faults.answer(400), ResponseError, "code none", id="400-empty"),
        pytest.param(refusal(429, 971), TransientError, "429", id="971"),
        pytest.param(refusal(429, 10000), TransientError, "429", id="429-with-another-code"),
        pytest.param(faults.html(502), TransientError, "502", id="502-html"),
        pytest.param(faults.answer(520), TransientError, "520", id="520-empty"),
        pytest.param(refusal(500, 10000), TransientError, "500", id="500-with-another-code"),
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_refusal_is_explained_by_its_code_and_status(
    account: Account, cloudflare: CloudflareWriter, method: str, fault: Fault, kind: type[ApiError], pattern: str
) -> None:
    account.faults.add(fault, method=method)
    call = partial(cloudflare.records, NAME) if method == "GET" else partial(cloudflare.change, [create()])
    with pytest.raises(kind, match=pattern) as raised:
        call()
    assert type(raised.value) is kind
    assert method in str(raised.value)


def test_unknown_path_without_a_zone_id_means_a_wrong_api_url(account: Account) -> None:
    """Code 7003 means an unknown path. With a zone id in the path, the error names CLOUDFLARE_ZONE_ID instead."""
    account.faults.add(refusal(404, 7003), path=r"/zones\?")
    with pytest.raises(ResponseError, match="CLOUDFLARE_API_URL"):
        client_of(account, None).records(NAME)


def test_codes_of_every_error_and_of_the_error_chain_are_used(account: Account, cloudflare: CloudflareWriter) -> None:
    errors = [{"code": 1002}, {"code": 1004, "error_chain": [{"code": 81058, "message": "twice"}]}]
    account.faults.add(faults.answer(400, json.dumps({"success": False, "errors": errors, "result": None})))
    with pytest.raises(ConflictError, match="code 1002, 1004, 81058"):
        cloudflare.change([create()])


@pytest.mark.parametrize("errors", [None, 7, "text", [None], [{"code": "9109"}], [{"error_chain": {}}], {}])
def test_malformed_errors_are_tolerated(account: Account, cloudflare: CloudflareWriter, errors: object) -> None:
    account.faults.add(faults.answer(400, json.dumps({"success": False, "errors": errors})))
    with pytest.raises(ResponseError, match="code none"):
        cloudflare.records(NAME)


def test_error_contains_the_request_the_status_the_code_and_the_ray_id(
    account: Account, cloudflare: CloudflareWriter
) -> None:
    account.set_token(permission="read")
    with pytest.raises(AuthError) as raised:
        cloudflare.change([create()])
    assert f"POST /zones/{account.zone_id}/dns_records: 403, code 10000, cf-ray " in str(raised.value)
