"""Test that the simulated Cloudflare behaves like the real API, as far as the behavior of the API is known."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from tests.simulators.cloudflare import ApiError, CloudflareSimulator
from tests.simulators.memory import memory_transport

DUPLICATE_RECORD = 81058
RECORD_NOT_FOUND = 81044
AUTHENTICATION_ERROR = 10000

NOON = datetime(2026, 8, 1, 12, 0, tzinfo=UTC)


class Account:
    """A simulated account with one zone.

    Attributes:
        zone: the id of the zone.
        records: the path of the zone's records.
        client: an HTTP client that sends the token of the account.
    """

    def __init__(self, **settings: Any) -> None:
        self.simulator = CloudflareSimulator(**settings)
        self.zone = self.simulator.add_zone("example.com")
        self.records = f"/zones/{self.zone}/dns_records"
        self.client = self.client_with(f"Bearer {self.simulator.token}")

    def client_with(self, authorization: str | None) -> httpx.Client:
        """Return an HTTP client that sends this Authorization header; None = it sends no such header."""
        return httpx.Client(
            transport=memory_transport(self.simulator.handle),
            base_url="http://cloudflare.test/client/v4",
            headers={} if authorization is None else {"Authorization": authorization},
        )

    def request_record(self, **fields: Any) -> httpx.Response:
        """Send a request to create a record, and return the response."""
        defaults = {"type": "A", "name": "a.example.com", "content": "100.64.0.1", "ttl": 60, "proxied": False}
        return self.client.post(self.records, json=defaults | fields)

    def create_record(self, **fields: Any) -> Any:
        """Create a record, and return the record in the response."""
        return self.request_record(**fields).json()["result"]

    def path_of(self, record: Any) -> str:
        """Return the path of a record."""
        return f"{self.records}/{record['id']}"


@pytest.fixture
def account() -> Account:
    return Account()


def error(response: httpx.Response) -> tuple[int, int]:
    """Return the status and the first error code of a refused request."""
    body = response.json()
    assert (body["success"], body["result"]) == (False, None)
    return response.status_code, body["errors"][0]["code"]


# --- Records ------------------------------------------------------------------------------------------


def test_fields_of_a_record(account: Account) -> None:
    record = account.create_record(comment="mine")
    assert set(record) == {
        "id", "name", "type", "content", "proxiable", "proxied", "ttl", "settings", "meta", "comment",
        "tags", "created_on", "modified_on", "comment_modified_on",
    }  # fmt: skip
    assert re.fullmatch("[0-9a-f]{32}", record["id"])
    assert (record["proxiable"], record["settings"], record["meta"], record["tags"]) == (False, {}, {}, [])
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{4,6}Z", record["created_on"])
    other = account.create_record(content="100.64.0.2")
    assert other["comment"] is None
    assert "comment_modified_on" not in other


def test_defaults_of_a_record(account: Account) -> None:
    fields = {"type": "A", "name": "a.example.com", "content": "192.0.2.1"}
    record = account.client.post(account.records, json=fields).json()["result"]
    assert (record["ttl"], record["proxied"]) == (1, False)


@pytest.mark.parametrize(
    ("name", "stored"),
    [
        ("A.Example.COM", "a.example.com"),
        ("a", "a.example.com"),
        ("@", "example.com"),
        ("mail.other.org", "mail.other.org.example.com"),
        ("bücher.example.com", "xn--bcher-kva.example.com"),
        ("*.example.com", "*.example.com"),
        ("_acme-challenge.a.example.com", "_acme-challenge.a.example.com"),
    ],
)
def test_name_is_stored_in_full_and_in_lower_case(account: Account, name: str, stored: str) -> None:
    assert account.create_record(name=name)["name"] == stored


@pytest.mark.parametrize("name", ["", None, "a..example.com", "a b.example.com", "x" * 64, "a.example.com."])
def test_invalid_name_is_refused(account: Account, name: object) -> None:
    assert error(account.request_record(name=name)) == (400, 9000)


def test_ipv6_address_is_stored_in_its_shortest_form(account: Account) -> None:
    assert account.create_record(type="AAAA", content="FD7A:115C:A1E0:0::0001")["content"] == "fd7a:115c:a1e0::1"
    assert error(account.request_record(type="AAAA", content="fd7a:115c:a1e0::1")) == (400, DUPLICATE_RECORD)


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        pytest.param({"content": "fd7a::1"}, 9005, id="IPv6-in-an-A"),
        pytest.param({"content": "100.64.0.300"}, 9005, id="invalid-IPv4"),
        pytest.param({"proxied": True}, 9003, id="proxied-vpn-address"),
        pytest.param({"proxied": True, "type": "AAAA", "content": "fd7a:115c:a1e0::1"}, 9003, id="proxied-ULA"),
        pytest.param({"proxied": True, "content": "10.0.0.1"}, 9003, id="proxied-private-address"),
        pytest.param({"tags": ["a:b"]}, 9300, id="tags-on-the-free-plan"),
        pytest.param({"ttl": 2}, 9021, id="TTL-of-2"),
        pytest.param({"ttl": 59}, 9021, id="TTL-below-a-minute"),
        pytest.param({"ttl": 86401}, 9021, id="TTL-above-a-day"),
        pytest.param({"ttl": "60"}, 1004, id="TTL-as-text"),
        pytest.param({"proxied": "no"}, 1004, id="proxied-as-text"),
        pytest.param({"comment": "x" * 101}, 1004, id="long-comment"),
        pytest.param({"comment": "a\nb"}, 1004, id="newline-in-comment"),
        pytest.param({"type": "a"}, 1004, id="type-in-lower-case"),
        pytest.param({"settings": {}}, 1004, id="unsupported-field"),
        pytest.param({"type": "CNAME", "content": "100.64.0.1"}, 9007, id="CNAME-to-an-address"),
        pytest.param({"type": "CNAME", "content": "b..example.com"}, 9007, id="CNAME-to-an-invalid-name"),
        pytest.param({"type": "CNAME", "content": "A.example.com."}, 9039, id="CNAME-to-itself"),
    ],
)
def test_invalid_record_is_refused(account: Account, fields: dict[str, Any], code: int) -> None:
    assert error(account.request_record(**fields)) == (400, code)
    assert account.simulator.records(account.zone) == []


def test_proxied_record_has_an_automatic_ttl(account: Account) -> None:
    record = account.create_record(content="198.51.100.7", proxied=True)
    assert (record["proxiable"], record["proxied"], record["ttl"]) == (True, True, 1)


def test_only_a_record_with_the_same_name_type_and_content_is_a_duplicate(account: Account) -> None:
    account.request_record()
    assert error(account.request_record(ttl=300, comment="other")) == (400, DUPLICATE_RECORD)
    other = account.create_record(content="100.64.0.2")
    assert len(account.simulator.records(account.zone, "a.example.com")) == 2
    response = account.client.patch(account.path_of(other), json={"content": "100.64.0.1"})
    assert error(response) == (400, DUPLICATE_RECORD)


@pytest.mark.parametrize(
    ("existing", "new", "code"),
    [
        (("CNAME", "b.example.com"), ("A", "100.64.0.1"), 81054),
        (("CNAME", "b.example.com"), ("AAAA", "fd7a::1"), 81054),
        (("A", "100.64.0.1"), ("CNAME", "b.example.com"), 81053),
        (("CNAME", "b.example.com"), ("CNAME", "c.example.com"), 81053),
        (("NS", "ns.example.org"), ("A", "100.64.0.1"), 81056),
        (("TXT", "hello"), ("NS", "ns.example.org"), 81056),
    ],
)
def test_records_of_conflicting_types_are_refused(
    account: Account, existing: tuple[str, str], new: tuple[str, str], code: int
) -> None:
    account.request_record(type=existing[0], content=existing[1])
    assert error(account.request_record(type=new[0], content=new[1])) == (400, code)


def test_txt_record_can_be_created_beside_a_cname(account: Account) -> None:
    account.request_record(type="CNAME", content="b.example.com")
    assert account.create_record(type="TXT", content="Hello")["content"] == "Hello"


def test_no_record_can_be_created_at_the_custom_domain_of_a_worker(account: Account) -> None:
    account.simulator.add_workers_domain(account.zone, "a.example.com")
    assert error(account.request_record()) == (400, 81062)
    [record] = account.client.get(account.records).json()["result"]
    assert record["meta"] == {"read_only": True}


def test_record_beyond_the_quota_is_refused() -> None:
    account = Account(quota=1)
    account.request_record()
    assert error(account.request_record(name="b")) == (400, 81045)


def test_patch_keeps_other_fields(account: Account) -> None:
    url = account.path_of(account.create_record(comment="mine"))
    patched = account.client.patch(url, json={"content": "100.64.0.2"}).json()["result"]
    assert (patched["content"], patched["comment"], patched["ttl"]) == ("100.64.0.2", "mine", 60)
    assert account.client.patch(url, json={"comment": ""}).json()["result"]["comment"] is None


def test_type_of_a_record_cannot_be_changed(account: Account) -> None:
    url = account.path_of(account.create_record())
    assert error(account.client.patch(url, json={"type": "AAAA", "content": "fd7a::1"}))[0] == 400


def test_deleted_record_does_not_exist(account: Account) -> None:
    record = account.create_record()
    url = account.path_of(record)
    assert account.client.delete(url).json()["result"] == {"id": record["id"]}
    assert error(account.client.delete(url))[1] == RECORD_NOT_FOUND
    assert error(account.client.get(url))[1] == RECORD_NOT_FOUND


def test_changes_in_the_dashboard_are_not_counted_as_writes(account: Account) -> None:
    """Tests call these methods of the simulator to make changes as an operator does in Cloudflare's dashboard."""
    record_id = account.simulator.add_record(account.zone, type="A", name="a", content="100.64.0.1", comment="x")
    account.simulator.change_record(record_id, content="100.64.0.9")
    assert account.client.get(f"{account.records}/{record_id}").json()["result"]["content"] == "100.64.0.9"
    with pytest.raises(ApiError, match=str(DUPLICATE_RECORD)):
        account.simulator.add_record(account.zone, type="A", name="a", content="100.64.0.9")
    account.simulator.remove_record(record_id)
    assert account.simulator.records(account.zone) == []
    assert account.simulator.writes == []


# --- Lists --------------------------------------------------------------------------------------------


@pytest.fixture
def account_with_records() -> Account:
    """Return an account with four records, whose names begin with a, b, c and d."""
    account = Account()
    account.request_record(name="a", comment="Mark one")
    account.request_record(name="b", comment="mark two")
    account.request_record(name="c", type="TXT", content="Text")
    account.request_record(name="d", content="198.51.100.1", proxied=True)
    return account


@pytest.mark.parametrize(
    ("query", "first_letters"),
    [
        ("", "abcd"),
        ("name=A.example.com", "a"),
        ("name=a", ""),
        ("name=contains:a", ""),
        ("match=any&name=a.example.com&name=b.example.com", "ab"),
        ("comment.exact=MARK ONE", "a"),
        ("comment.startswith=MARK", "ab"),
        ("name=a.example.com&comment.exact=mark two", ""),
        ("match=any&name=c.example.com&comment.exact=mark two", "bc"),
    ],
)
def test_records_are_filtered(account_with_records: Account, query: str, first_letters: str) -> None:
    records = account_with_records.client.get(f"{account_with_records.records}?{query}").json()["result"]
    assert "".join(sorted(record["name"][0] for record in records)) == first_letters


def test_records_are_listed_in_pages(account_with_records: Account) -> None:
    pages = [
        account_with_records.client.get(account_with_records.records, params={"per_page": "3", "page": page}).json()
        for page in (1, 2, 3)
    ]
    # The records are sorted by type. The record c is the only TXT record.
    assert ["".join(record["name"][0] for record in page["result"]) for page in pages] == ["abd", "c", ""]
    assert pages[0]["result_info"] == {"page": 1, "per_page": 3, "count": 3, "total_count": 4, "total_pages": 2}
    empty = account_with_records.client.get(account_with_records.records, params={"name": "no-such-name"}).json()[
        "result_info"
    ]
    assert empty == {"page": 1, "per_page": 100, "count": 0, "total_count": 0, "total_pages": 1}


@pytest.mark.parametrize("query", ["per_page=0", "per_page=5001", "page=0", "page=x", "type=A", "match=some"])
def test_invalid_or_unsupported_query_is_refused(account_with_records: Account, query: str) -> None:
    assert error(account_with_records.client.get(f"{account_with_records.records}?{query}&name=a"))[0] == 400


# --- Batches ------------------------------------------------------------------------------------------


def test_batch_deletes_before_it_creates(account: Account) -> None:
    """A new record can have the name of a deleted one."""
    old = account.create_record(type="CNAME", content="b.example.com")["id"]
    kept = account.create_record(name="k")["id"]
    body = {
        "posts": [{"type": "A", "name": "a.example.com", "content": "100.64.0.1"}],
        "patches": [{"id": kept, "content": "100.64.0.9"}],
        "deletes": [{"id": old}],
    }
    result = account.client.post(f"{account.records}/batch", json=body).json()["result"]
    assert {key: [record["content"] for record in records] for key, records in result.items()} == {
        "deletes": ["b.example.com"],
        "patches": ["100.64.0.9"],
        "posts": ["100.64.0.1"],
    }


def test_batch_is_all_or_nothing(account: Account) -> None:
    old = account.create_record()["id"]
    before = account.simulator.records(account.zone)
    body = {"deletes": [{"id": old}, {"id": "0" * 32}], "posts": [{"type": "A", "name": "b", "content": "nonsense"}]}
    response = account.client.post(f"{account.records}/batch", json=body)
    assert error(response)[1] == RECORD_NOT_FOUND
    assert len(response.json()["errors"]) == 1
    assert account.simulator.records(account.zone) == before


@pytest.mark.parametrize(
    "body",
    [
        {"deletes": [{}]},
        {"patches": [{"id": "x"}]},
        {"posts": {"type": "A"}},
        {"puts": []},
        [],
        {"posts": [{"type": "A", "name": f"a{number}", "content": "192.0.2.1"} for number in range(201)]},
    ],
    ids=["no-id", "invalid-id", "not-a-list", "unsupported-operation", "not-an-object", "too-many"],
)
def test_malformed_batch_is_refused(account: Account, body: object) -> None:
    assert error(account.client.post(f"{account.records}/batch", json=body))[0] == 400
    assert account.simulator.records(account.zone) == []


# --- Tokens and zones ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "header", ["Bearer", "Bearer ", "Bearer a b", "Bearer a\tb", "Basic abc", "Bearer <token>", 'Bearer "abc"']
)
def test_malformed_header_is_refused(account: Account, header: str) -> None:
    assert error(account.client_with(header).get(account.records)) == (400, 6003)


@pytest.mark.parametrize("path", ["/zones", "/zones/{zone}/dns_records"])
def test_missing_header_and_unknown_token_are_refused(account: Account, path: str) -> None:
    path = path.format(zone=account.zone)
    assert error(account.client_with(None).get(path)) == (400, 9106)
    assert error(account.client_with("Bearer abcdef").get(path)) == (403, 9109)


def test_request_without_the_permission_is_refused(account: Account) -> None:
    account.client = account.client_with(f"Bearer {account.simulator.set_token(permission='read')}")
    assert account.client.get(account.records).status_code == 200
    assert error(account.request_record()) == (403, AUTHENTICATION_ERROR)
    assert error(account.client.post(f"{account.records}/batch", json={})) == (403, AUTHENTICATION_ERROR)


def test_token_cannot_access_an_unknown_zone(account: Account) -> None:
    for path in (f"/zones/{'0' * 32}", f"/zones/{'0' * 32}/dns_records"):
        assert error(account.client.get(path)) == (403, AUTHENTICATION_ERROR)


@pytest.mark.parametrize("path", ["/zones/example.com/dns_records", "/zones/{zone}/dns_records/abc"])
def test_malformed_id_is_refused(account: Account, path: str) -> None:
    assert error(account.client.get(path.format(zone=account.zone))) == (400, 7003)


def test_zones_are_filtered_by_name(account: Account) -> None:
    account.simulator.add_zone("sub.example.com")
    (zone,) = account.client.get("/zones", params={"name": "Example.com"}).json()["result"]
    assert (zone["id"], zone["status"]) == (account.zone, "active")
    assert len(account.client.get("/zones").json()["result"]) == 2
    assert account.client.get("/zones", params={"name": "example"}).json()["result"] == []
    assert account.client.get(f"/zones/{account.zone}").json()["result"]["name"] == "example.com"
    for query in ("per_page=4", "per_page=51", "name=ends_with:example.com", "status=active"):
        assert error(account.client.get(f"/zones?{query}"))[0] == 400


# --- Rate limit ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("retry_after", [False, True])
def test_requests_beyond_the_rate_limit_are_refused_until_the_window_ends(retry_after: bool) -> None:
    now = NOON
    account = Account(now=lambda: now)
    account.simulator.limit_rate(2, timedelta(minutes=5), retry_after=retry_after)
    assert [account.client.get(account.records).status_code for _ in range(3)] == [200, 200, 429]
    now += timedelta(seconds=100.5)
    response = account.client.get(account.records)
    assert response.json()["errors"][0]["code"] == 10429
    assert response.headers.get("retry-after") == ("200" if retry_after else None)
    now += timedelta(seconds=199.5)
    assert account.client.get(account.records).status_code == 200
    account.simulator.limit_rate(0)
    assert account.client.get(account.records).status_code == 429
    account.simulator.remove_rate_limit()
    assert account.client.get(account.records).status_code == 200
