"""The faults and events of one run, which are drawn from a seed or read from once_failed.json."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from random import Random
from typing import Any, Final, Literal, TypeAlias

from tests.simulators import faults
from tests.simulators.cloudflare import refusal
from tests.simulators.dialects import VERSIONS
from tests.simulators.faults import Fault

STEPS: Final = 14
"""The number of steps of a random schedule, without the added one."""

ADDED_SHARE: Final = 0.5
"""The share of random schedules with an added step."""

UpstreamName: TypeAlias = Literal["headscale", "cloudflare"]

# Headscale's own errors, as its gateway returns them.
EXHAUSTED: Final = json.dumps({"code": 8, "message": "grpc: received message larger than max", "details": []})
THROTTLED_971: Final = json.dumps(
    {"success": False, "errors": [{"code": 971, "message": "wait"}], "messages": [], "result": None}
)
THROTTLED_10429: Final = json.dumps({"success": False, "errors": [{"code": 10429, "message": "wait"}]})
NOTHING_OF_ONE: Final = json.dumps(
    {
        "success": True,
        "errors": [],
        "messages": [],
        "result": [],
        "result_info": {"page": 1, "per_page": 100, "count": 0, "total_count": 1, "total_pages": 1},
    }
)

FAULTS: Final[dict[str, Callable[[UpstreamName, Random], Fault]]] = {
    "refused": lambda _upstream, _random: faults.refuse(),
    "reset before": lambda _upstream, _random: faults.drop(),
    "reset after": lambda _upstream, _random: faults.drop(committed=True),
    "time-out before": lambda _upstream, _random: faults.hang(),
    "time-out after": lambda _upstream, _random: faults.hang(committed=True),
    "slow drip": lambda _upstream, _random: faults.drip(),
    "truncated": lambda _upstream, _random: faults.truncate(),
    "garbage": lambda _upstream, _random: faults.garbage(),
    "wrong content type": lambda _upstream, _random: faults.wrong_content_type(),
    "empty object": lambda _upstream, _random: faults.answer(200, "{}"),
    "null": lambda _upstream, _random: faults.answer(200, "null"),
    "short list": lambda upstream, _random: faults.answer(
        200, NOTHING_OF_ONE if upstream == "cloudflare" else '{"nodes":[],"users":[],"preAuthKeys":[],"apiKeys":[]}'
    ),
    "401": lambda upstream, _random: (
        refusal(401, 10000)
        if upstream == "cloudflare"
        else faults.answer(401, "Unauthorized", content_type="text/plain")
    ),
    "403": lambda upstream, random: (
        refusal(403, random.choice((9109, 10000))) if upstream == "cloudflare" else faults.html(403)
    ),
    "404": lambda upstream, _random: refusal(404, 7003) if upstream == "cloudflare" else faults.html(404),
    "409": lambda upstream, _random: (
        refusal(400, 81058) if upstream == "cloudflare" else faults.answer(409, '{"title":"Conflict","status":409}')
    ),
    "429": lambda upstream, random: faults.too_many_requests(
        body=EXHAUSTED if upstream == "headscale" else random.choice((THROTTLED_971, THROTTLED_10429))
    ),
    "429 with Retry-After": lambda _upstream, random: faults.too_many_requests(
        random.choice((1, 20, 90)), body=random.choice((THROTTLED_971, THROTTLED_10429))
    ),
    "5xx with HTML": lambda _upstream, random: faults.html(random.choice((502, 503, 504))),
    "redirect": lambda _upstream, _random: faults.answer(302, headers={"Location": "http://elsewhere.example/"}),
    "stale read": lambda _upstream, _random: faults.stale(),
}
"""All faults of a request."""

HIDDEN_NODES: Final = "our nodes hidden"
"""A proxy returns 404 for each node, and the list lacks the nodes of our name. No node must count as lost."""

EMPTY_NODE_LIST: Final = "node list empty"
"""Headscale and all sidecars have just started: the list is empty, and the sidecars have only the key metadata."""

UNDETECTABLE: Final = frozenset({"stale read", HIDDEN_NODES, EMPTY_NODE_LIST})
"""Faults that a client cannot distinguish from a correct response."""

EVENTS: Final = (
    "record edited",
    "record cleared of its mark",
    "record deleted",
    "second record added",
    "record taken over",
    "name taken by another owner",
    "CNAME in the way",
    "foreign node joins",
    "node deleted",
    "node expired",
    "address changed",
    "headscale restarted",
    "headscale upgraded",
    "token renewed",
    "API key renewed",
    "token refused",
    "clock jumps",
    "partition",
    "partition over",
)
"""Events between two passes."""

ALSO_MEANWHILE: Final = frozenset(
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
"""Events that also happen in the middle of a pass.

Changes of a record's owner are not among them: the program cannot detect those in time, because Cloudflare has no
conditional writes.
"""

KILLED_WRITING: Final = "kill -9 while a key is written"

INTERRUPTIONS: Final = ("kill -9", KILLED_WRITING, "SIGTERM", "SIGSTOP", "another pod's pass", "volume gone")
"""Interruptions in the middle of a pass, around a request or at a line of the code that writes the key."""

DATABASE_RESTORED: Final = "database restored"
"""Headscale's database is restored from a backup, and other machines get the ids of nodes and keys created since."""

OUTPUT_FAILS: Final = "output fails"
"""Standard output is a broken pipe, a full disk, a full pipe without a reader, or closed."""

COMPRESSED: Final = "compressed"
"""A response decodes to more than the size limit: gzip, or gzip within gzip."""

RECORD_CHANGED_DURING_PASS: Final = "record changed during a pass"
"""Another owner takes over or repoints a record during a request to Headscale, after the program read the zone."""

ADDED_KINDS: Final = (DATABASE_RESTORED, OUTPUT_FAILS, COMPRESSED, RECORD_CHANGED_DURING_PASS)
"""Kinds of the additional step. They are not drawn with the others, so that a seed keeps its other steps."""

POD_EVENTS: Final = (
    "pod restarted",
    "sidecar restarted",
    "second pod",
    "tailscale restarted",
    "node vanishes silently",
)


@dataclass(frozen=True, slots=True)
class Step:
    """One fault or event, and the wait after it.

    Attributes:
        kind: a key of `FAULTS`, or one of the other lists.
        meanwhile: it happens in the middle of a pass instead of between two passes.
        upstream: the upstream of the affected requests.
        method: the method of the affected requests; None = any.
        page_two: the fault affects only second pages.
        times: the number of requests that the fault affects.
        after: the number of requests before the first one that it affects.
        wait_s: how long the pods run before the next step.
        draw: seed for the random choices of this step.
    """

    kind: str
    meanwhile: bool
    upstream: UpstreamName
    method: str | None
    page_two: bool
    times: int
    after: int
    wait_s: float
    draw: int

    @property
    def random(self) -> Random:
        """Return a random generator that is the same for the same step."""
        return Random(self.draw)


@dataclass(frozen=True, slots=True)
class Schedule:
    """The steps of one run.

    Attributes:
        seed: for the random values of the program itself.
        version: Headscale's release at the start.
        variables: settings that differ from the defaults.
        crowded: our name has more than one page of records.
        kept_state: tailscale keeps its machine key when it restarts.
        steps: in order.
    """

    seed: int
    version: str
    variables: Mapping[str, str]
    crowded: bool
    kept_state: bool
    steps: tuple[Step, ...]

    def without(self, number: int) -> Schedule:
        """Return the schedule without one of its steps."""
        return replace(self, steps=self.steps[:number] + self.steps[number + 1 :])

    def text(self) -> str:
        """Return the schedule as JSON, which does not depend on how later versions draw schedules."""
        return json.dumps(asdict(self))


def drawn(seed: int) -> Schedule:
    """Generate a schedule. The same seed always gives the same schedule."""

    def draw(what: str) -> Random:
        return Random(f"{seed}/{what}")

    settings = draw("settings")
    crowded = draw("crowd").random() < 0.12
    steps = [_step(draw(str(number)), crowded=crowded) for number in range(STEPS)]
    added = draw("added")
    if added.random() < ADDED_SHARE:
        steps.insert(added.randrange(STEPS // 2), _added_step(added))
    return Schedule(
        seed=seed,
        version=draw("version").choice(VERSIONS),
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
        crowded=crowded,
        kept_state=draw("state").random() < 0.5,
        steps=tuple(steps),
    )


def with_further_names(schedule: Schedule) -> Schedule:
    """Return the schedule for a workload that has an alias, an alias that is the domain, and a shared name."""
    further = {"DNS_ALIASES": "docs,example.com", "DNS_SHARED_NAMES": "ingress"}
    return replace(schedule, variables={**schedule.variables, **further})


def parsed(values: Mapping[str, Any]) -> Schedule:
    """Parse the result of `Schedule.text`."""
    return Schedule(**{**values, "steps": tuple(Step(**step) for step in values["steps"])})


def _step(random: Random, *, crowded: bool) -> Step:
    kind = random.choice(
        random.choices(
            ((*FAULTS, HIDDEN_NODES, EMPTY_NODE_LIST), EVENTS, INTERRUPTIONS, POD_EVENTS), weights=(50, 22, 16, 12)
        )[0]
    )
    upstream: UpstreamName = random.choice(("headscale", "cloudflare"))
    method = random.choice((None, None, "GET", "POST", "PATCH", "DELETE"))
    if kind == "short list":
        method = "GET"
    # Only Cloudflare has pages, and only if a name has many records.
    page_two = crowded and kind in FAULTS and random.random() < 0.4
    return Step(
        kind=kind,
        meanwhile=kind in INTERRUPTIONS or (kind in ALSO_MEANWHILE and random.random() < 0.4),
        upstream="cloudflare" if page_two else upstream,
        method="GET" if page_two else method,
        page_two=page_two,
        times=random.choice((1, 1, 1, 2, 3, 12)),
        after=random.choice((0, 0, 0, 1, 2, 4)),
        wait_s=random.choice((0.0, 1.0, 20.0, 70.0, 200.0, 400.0)),
        draw=random.getrandbits(32),
    )


def _added_step(random: Random) -> Step:
    kind = random.choice(ADDED_KINDS)
    during_pass = kind == RECORD_CHANGED_DURING_PASS
    return Step(
        kind=kind,
        meanwhile=during_pass,
        upstream="headscale" if during_pass else random.choice(("headscale", "cloudflare")),
        method="GET" if kind == COMPRESSED else None,
        page_two=False,
        times=random.choice((1, 3, 12)),
        after=random.choice((0, 1, 2, 4)),
        wait_s=random.choice((20.0, 70.0, 400.0)),
        draw=random.getrandbits(32),
    )
