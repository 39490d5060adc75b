"""Schedules: sequences of faults and events that are generated from a seed or read from regressions.json.

A pass is one run of `cleanup`, or one iteration of the loop of `dns-watch`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from random import Random
from typing import Any, Final, Literal, TypeAlias

from tests.simulators import faults
from tests.simulators.cloudflare import AUTHENTICATION, INVALID_TOKEN, NO_ROUTE, refusal
from tests.simulators.dialects import VERSIONS
from tests.simulators.dns import IDENTICAL
from tests.simulators.faults import Fault

STEPS: Final = 14
"""The number of steps of a random schedule. Some schedules have one more, the additional step."""

ADDITIONAL_STEP_SHARE: Final = 0.5
"""The share of random schedules that have the additional step."""

UpstreamName: TypeAlias = Literal["headscale", "cloudflare"]

# The body of Headscale's response if the result is too large. Headscale's gRPC gateway creates it.
TOO_LARGE: Final = json.dumps({"code": 8, "message": "grpc: received message larger than max", "details": []})
# The bodies of Cloudflare's response to too many requests: one for each of the two error codes that Cloudflare uses.
THROTTLED_971: Final = json.dumps(
    {"success": False, "errors": [{"code": 971, "message": "wait"}], "messages": [], "result": None}
)
THROTTLED_10429: Final = json.dumps({"success": False, "errors": [{"code": 10429, "message": "wait"}]})
# A wrong response of Cloudflare: a page without records, although the total is one record.
EMPTY_PAGE: Final = json.dumps(
    {
        "success": True,
        "errors": [],
        "messages": [],
        "result": [],
        "result_info": {"page": 1, "per_page": 100, "count": 0, "total_count": 1, "total_pages": 1},
    }
)

NO_ITEMS: Final = "list without items"

FAULTS: Final[dict[str, Callable[[UpstreamName, Random], Fault]]] = {
    "refused": lambda _upstream, _random: faults.refuse(),
    "reset before execution": lambda _upstream, _random: faults.drop(),
    "reset after execution": lambda _upstream, _random: faults.drop(after_execution=True),
    "time-out before execution": lambda _upstream, _random: faults.hang(),
    "time-out after execution": lambda _upstream, _random: faults.hang(after_execution=True),
    "slow response": lambda _upstream, _random: faults.drip(),
    "truncated": lambda _upstream, _random: faults.truncate(),
    "malformed JSON": lambda _upstream, _random: faults.malformed_json(),
    "wrong content type": lambda _upstream, _random: faults.wrong_content_type(),
    "empty object": lambda _upstream, _random: faults.answer(200, "{}"),
    "null": lambda _upstream, _random: faults.answer(200, "null"),
    NO_ITEMS: lambda upstream, _random: faults.answer(
        200, EMPTY_PAGE if upstream == "cloudflare" else '{"nodes":[],"users":[],"preAuthKeys":[],"apiKeys":[]}'
    ),
    "401": lambda upstream, _random: (
        refusal(401, AUTHENTICATION)
        if upstream == "cloudflare"
        else faults.answer(401, "Unauthorized", content_type="text/plain")
    ),
    "403": lambda upstream, random: (
        refusal(403, random.choice((INVALID_TOKEN, AUTHENTICATION))) if upstream == "cloudflare" else faults.html(403)
    ),
    "404": lambda upstream, _random: refusal(404, NO_ROUTE) if upstream == "cloudflare" else faults.html(404),
    "409": lambda upstream, _random: (
        refusal(400, IDENTICAL) if upstream == "cloudflare" else faults.answer(409, '{"title":"Conflict","status":409}')
    ),
    "429": lambda upstream, random: faults.too_many_requests(
        body=TOO_LARGE if upstream == "headscale" else random.choice((THROTTLED_971, THROTTLED_10429))
    ),
    "429 with Retry-After": lambda _upstream, random: faults.too_many_requests(
        random.choice((1, 20, 90)), body=random.choice((THROTTLED_971, THROTTLED_10429))
    ),
    "5xx with HTML": lambda _upstream, random: faults.html(random.choice((502, 503, 504))),
    "redirect": lambda _upstream, _random: faults.answer(302, headers={"Location": "http://elsewhere.example/"}),
    "stale read": lambda _upstream, _random: faults.stale(),
}
"""Functions that create the faults of single requests, by kind."""

HIDDEN_NODES: Final = "nodes hidden by a proxy"
"""A proxy returns 404 for requests for a single node, and removes the workload's nodes from lists."""

EMPTY_NODE_LIST: Final = "node list empty"
"""Headscale and all sidecars have just started. The list of nodes is empty, and the sidecars have not read a node yet.

The sidecars know their node only from the key metadata, a file beside the pre-auth key.
"""

UNDETECTABLE: Final = frozenset({"stale read", HIDDEN_NODES, EMPTY_NODE_LIST})
"""Faults that a client cannot distinguish from a correct response."""

EVENTS: Final = (
    "record edited",
    "record comment removed",
    "record deleted",
    "second record added",
    "record comment changed",
    "foreign record added",
    "foreign CNAME created",
    "foreign node joins",
    "node deleted",
    "node expired",
    "address changed",
    "headscale restarted",
    "headscale upgraded",
    "token renewed",
    "API key renewed",
    "credentials revoked",
    "clock jumps",
    "partition",
    "partition ends",
)
"""Events between two passes."""

ALSO_DURING_PASS: Final = frozenset(
    {
        "record edited",
        "node deleted",
        "node expired",
        "headscale restarted",
        "headscale upgraded",
        "token renewed",
        "API key renewed",
        "clock jumps",
    }
)
"""Events that can also happen in the middle of a pass.

Events that change the owner of a record are not in this set. Cloudflare has no conditional writes, so the program
cannot detect such a change if it happens between the program's last read and its write.
"""

KILLED_WRITING: Final = "kill -9 while a key is written"

INTERRUPTIONS: Final = ("kill -9", KILLED_WRITING, "SIGTERM", "SIGSTOP", "another pod's pass", "volume gone")
"""Interruptions of a pass. They happen before or after a request, or while the key file is written."""

DATABASE_RESTORED: Final = "database restored"
"""Headscale's database is restored from a backup. New nodes and keys then get ids that were used before."""

OUTPUT_FAILS: Final = "output fails"
"""Standard output is closed or cannot be written: it is a broken pipe, a full disk or a full pipe."""

COMPRESSED: Final = "compressed"
"""A response is compressed once or twice. Decoded, it is larger than the program's limit for a response."""

RECORD_CHANGED_DURING_PASS: Final = "record changed during a pass"
"""A record changes its owner or its address during a request to Headscale, after the program has read the records."""

ADDITIONAL_KINDS: Final = (DATABASE_RESTORED, OUTPUT_FAILS, COMPRESSED, RECORD_CHANGED_DURING_PASS)
"""Kinds of the additional step.

This step has its own random generator, so that the other steps of a seed stay the same if a kind is added.
"""

POD_EVENTS: Final = (
    "pod replaced",
    "sidecar restarted",
    "pod added",
    "tailscale restarted",
    "cluster node fails",
)
"""Events of pods and cluster nodes. They happen between two passes."""


@dataclass(frozen=True, slots=True)
class Step:
    """One fault or event, and the wait after it.

    Attributes:
        kind: a key of `FAULTS`, or one of the other kinds of this module.
        wait_s: how long the pods run before the next step.
        seed: the seed of the random choices of this step.
        during_pass: True if the step happens in the middle of a pass; False if it happens between two passes, or
            if it is a fault of requests.
        upstream: the upstream that the step affects; None if the kind of the step does not leave a choice.
        method: the HTTP method of the affected requests; None = any.
        second_page: True if the fault affects only requests for the second page of a list.
        times: the number of requests that the fault affects.
        after: the number of matching requests before the first affected one.
    """

    kind: str
    wait_s: float
    seed: int
    during_pass: bool = False
    upstream: UpstreamName | None = None
    method: str | None = None
    second_page: bool = False
    times: int = 1
    after: int = 0

    @property
    def random(self) -> Random:
        """Return a random generator that is the same for the same step."""
        return Random(self.seed)


@dataclass(frozen=True, slots=True)
class Schedule:
    """The steps of one run.

    Attributes:
        seed: the seed of the random values of the program itself.
        version: Headscale's release at the start.
        variables: settings of the program. CLOUDFLARE_ZONE_ID is "given" if the setting contains the id of the zone, or
            "looked up" if it is empty.
        many_records: True if the workload's hostname has more than one page of records.
        keeps_machine_key: True if a tailscale container has the same machine key after a restart.
        steps: the steps in chronological order.
    """

    seed: int
    version: str
    variables: Mapping[str, str]
    many_records: bool
    keeps_machine_key: bool
    steps: tuple[Step, ...]

    def without(self, number: int) -> Schedule:
        """Return the schedule without the step of this number."""
        return replace(self, steps=self.steps[:number] + self.steps[number + 1 :])

    def text(self) -> str:
        """Return the schedule as JSON, for regressions.json. Default values of steps are omitted."""
        steps = [
            {field.name: value for field in fields(step) if (value := getattr(step, field.name)) != field.default}
            for step in self.steps
        ]
        return json.dumps(asdict(self) | {"steps": steps})


def random_schedule(seed: int) -> Schedule:
    """Return the schedule of a seed.

    Each part of the schedule has its own random generator. If the code of one part changes, the other parts of a seed
    stay the same.
    """

    def random_of(part: str) -> Random:
        return Random(f"{seed}/{part}")

    # The names are in the seeds of the generators, so a new name would change every schedule.
    settings = random_of("settings")
    many_records = random_of("crowd").random() < 0.12
    steps = [_random_step(random_of(str(number)), many_records=many_records) for number in range(STEPS)]
    additional = random_of("added")
    if additional.random() < ADDITIONAL_STEP_SHARE:
        steps.insert(additional.randrange(STEPS // 2), _random_additional_step(additional))
    return Schedule(
        seed=seed,
        version=random_of("version").choice(VERSIONS),
        variables={
            "SELF_HEAL": settings.choice(("true", "false")),
            "DNS_CLEANUP": settings.choice(("delete", "keep")),
            "DNS_IPV6": settings.choice(("true", "false", "false")),
            "POLL_INTERVAL": settings.choice(("30s", "2m", "2m")),
            "VERIFY_INTERVAL": settings.choice(("2m", "2m", "5m")),
            "MAX_RETRIES": settings.choice(("0", "30")),
            "HEADSCALE_USER": settings.choice(("svc", "svc", "")),
            "CLOUDFLARE_ZONE_ID": settings.choice(("given", "given", "looked up")),
            "TAILSCALE_INTERFACE": settings.choice(("tailscale0", "tailscale0", "")),
        },
        many_records=many_records,
        keeps_machine_key=random_of("state").random() < 0.5,
        steps=tuple(steps),
    )


def with_further_names(schedule: Schedule) -> Schedule:
    """Return the schedule for a workload with three further names: two aliases, and a name that it shares with others.

    One of the aliases is the domain itself.
    """
    names = {"DNS_ALIASES": "docs,example.com", "DNS_SHARED_NAMES": "ingress"}
    return replace(schedule, variables={**schedule.variables, **names})


def from_mapping(values: Mapping[str, Any]) -> Schedule:
    """Return the schedule that the decoded JSON of `Schedule.text` describes."""
    return Schedule(**{**values, "steps": tuple(Step(**step) for step in values["steps"])})


def _random_step(random: Random, *, many_records: bool) -> Step:
    kind = random.choice(
        random.choices(
            ((*FAULTS, HIDDEN_NODES, EMPTY_NODE_LIST), EVENTS, INTERRUPTIONS, POD_EVENTS), weights=(50, 22, 16, 12)
        )[0]
    )
    upstream: UpstreamName = random.choice(("headscale", "cloudflare"))
    method = random.choice((None, None, "GET", "POST", "PATCH", "DELETE"))
    if kind in {NO_ITEMS, "stale read"}:
        method = "GET"
    # Only Cloudflare has pages, and only if a name has many records.
    second_page = many_records and kind in FAULTS and random.random() < 0.4
    step = Step(
        kind=kind,
        during_pass=kind in INTERRUPTIONS or (kind in ALSO_DURING_PASS and random.random() < 0.4),
        upstream="cloudflare" if second_page else upstream,
        method="GET" if second_page else method,
        second_page=second_page,
        times=random.choice((1, 1, 1, 2, 3, 12)),
        after=random.choice((0, 0, 0, 1, 2, 4)),
        wait_s=random.choice((0.0, 1.0, 20.0, 70.0, 200.0, 400.0)),
        seed=random.getrandbits(32),
    )
    return step if kind in FAULTS else _without_unused_values(step)


def _without_unused_values(step: Step) -> Step:
    """Return a step whose kind is not in `FAULTS`, with defaults in the fields that its kind does not use."""
    if step.during_pass and step.kind != KILLED_WRITING:
        return replace(step, method=None, times=1)
    return Step(step.kind, step.wait_s, step.seed, step.during_pass)


def _random_additional_step(random: Random) -> Step:
    kind = random.choice(ADDITIONAL_KINDS)
    is_record_change = kind == RECORD_CHANGED_DURING_PASS
    return Step(
        kind=kind,
        during_pass=is_record_change,
        upstream="headscale" if is_record_change else random.choice(("headscale", "cloudflare")),
        method="GET" if kind == COMPRESSED else None,
        second_page=False,
        times=random.choice((1, 3, 12)),
        after=random.choice((0, 1, 2, 4)),
        wait_s=random.choice((20.0, 70.0, 400.0)),
        seed=random.getrandbits(32),
    )
