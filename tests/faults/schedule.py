"""From a seed, what goes wrong and when: a list of steps, each drawn for itself so that any can be left out."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Final, Literal, TypeAlias

from tests.simulators import faults
from tests.simulators.cloudflare import refusal
from tests.simulators.dialects import VERSIONS
from tests.simulators.faults import Fault

STEPS: Final = 14
"""How many steps a schedule has before any is left out."""

ServiceName: TypeAlias = Literal["headscale", "cloudflare"]

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

FAULTS: Final[dict[str, Callable[[ServiceName, Random], Fault]]] = {
    "refused": lambda _service, _random: faults.refuse(),
    "reset before": lambda _service, _random: faults.drop(),
    "reset after": lambda _service, _random: faults.drop(committed=True),
    "time-out before": lambda _service, _random: faults.hang(),
    "time-out after": lambda _service, _random: faults.hang(committed=True),
    "slow drip": lambda _service, _random: faults.drip(),
    "truncated": lambda _service, _random: faults.truncate(),
    "garbage": lambda _service, _random: faults.garbage(),
    "wrong content type": lambda _service, _random: faults.wrong_content_type(),
    "empty object": lambda _service, _random: faults.answer(200, "{}"),
    "null": lambda _service, _random: faults.answer(200, "null"),
    "short list": lambda service, _random: faults.answer(
        200, NOTHING_OF_ONE if service == "cloudflare" else '{"nodes":[],"users":[],"preAuthKeys":[],"apiKeys":[]}'
    ),
    "401": lambda service, _random: (
        refusal(401, 10000)
        if service == "cloudflare"
        else faults.answer(401, "Unauthorized", content_type="text/plain")
    ),
    "403": lambda service, random: (
        refusal(403, random.choice((9109, 10000))) if service == "cloudflare" else faults.html(403)
    ),
    "404": lambda service, _random: refusal(404, 7003) if service == "cloudflare" else faults.html(404),
    "409": lambda service, _random: (
        refusal(400, 81058) if service == "cloudflare" else faults.answer(409, '{"title":"Conflict","status":409}')
    ),
    "429": lambda _service, random: faults.too_many_requests(body=random.choice((THROTTLED_971, THROTTLED_10429))),
    "429 with Retry-After": lambda _service, random: faults.too_many_requests(
        random.choice((1, 20, 90)), body=random.choice((THROTTLED_971, THROTTLED_10429))
    ),
    "5xx with HTML": lambda _service, random: faults.html(random.choice((502, 503, 504))),
    "redirect": lambda _service, _random: faults.answer(302, headers={"Location": "http://elsewhere.example/"}),
    "stale read": lambda _service, _random: faults.stale(),
}
"""Everything that can happen to a request."""

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
"""What happens to the world between two passes."""

INTERRUPTIONS: Final = ("kill -9", "SIGTERM", "SIGSTOP", "another pod's pass", "record edited", "volume gone")
"""What happens in the middle of a pass, around a request."""

POD_EVENTS: Final = (
    "pod restarted",
    "sidecar restarted",
    "second pod",
    "tailscale restarted",
    "node vanishes silently",
)


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that goes wrong, and how long is waited after it.

    Attributes:
        kind: a key of `FAULTS`, or one of the other lists.
        service: what it hits, where it hits a service.
        method: which requests a fault hits; None = any.
        page_two: it hits second pages only.
        times: how many requests a fault hits.
        after: how many requests pass before.
        wait_s: how long the world goes on after it.
        draw: more chance, for what needs it.
    """

    kind: str
    service: ServiceName
    method: str | None
    page_two: bool
    times: int
    after: int
    wait_s: float
    draw: int

    @property
    def random(self) -> Random:
        """Always the same numbers for the same step."""
        return Random(self.draw)


@dataclass(frozen=True, slots=True)
class Schedule:
    """What goes wrong in one run.

    Attributes:
        seed: everything is drawn from it.
        kept: the numbers of the steps that are made; None = all.
    """

    seed: int
    kept: tuple[int, ...] | None = None

    @property
    def steps(self) -> list[Step]:
        """In order."""
        kept = range(STEPS) if self.kept is None else self.kept
        return [_step(Random(f"{self.seed}/{number}")) for number in sorted(kept)]

    @property
    def version(self) -> str:
        """Headscale's, at the start."""
        return self._draw("version").choice(VERSIONS)

    @property
    def variables(self) -> dict[str, str]:
        """Settings that differ from the defaults."""
        draw = self._draw("settings")
        return {
            "SELF_HEAL": draw.choice(("true", "false")),
            "DNS_CLEANUP": draw.choice(("delete", "keep")),
            "DNS_IPV6": draw.choice(("true", "false", "false")),
            "POLL_INTERVAL": draw.choice(("30s", "2m", "2m")),
            "VERIFY_INTERVAL": draw.choice(("2m", "2m", "5m")),
            "MAX_RETRIES": draw.choice(("0", "30")),
            "HEADSCALE_USER": draw.choice(("svc", "svc", "")),
            "CLOUDFLARE_ZONE_ID": draw.choice(("given", "given", "looked up")),
            "TAILSCALE_INTERFACE": draw.choice(("tailscale0", "tailscale0", "")),
        }

    @property
    def crowded(self) -> bool:
        """Whether the records at our name fill more than one page."""
        return self._draw("crowd").random() < 0.04

    @property
    def kept_state(self) -> bool:
        """Whether a tailscale container that restarts is the same machine."""
        return self._draw("state").random() < 0.5

    def _draw(self, what: str) -> Random:
        return Random(f"{self.seed}/{what}")

    def without(self, number: int) -> Schedule:
        """The same without one of its steps."""
        kept = range(STEPS) if self.kept is None else self.kept
        return Schedule(self.seed, tuple(step for step in kept if step != number))


def _step(random: Random) -> Step:
    kind = random.choice(
        random.choices((tuple(FAULTS), EVENTS, INTERRUPTIONS, POD_EVENTS), weights=(50, 22, 16, 12))[0]
    )
    method = random.choice((None, None, "GET", "POST", "PATCH", "DELETE"))
    if kind == "short list":
        method = "GET"
    return Step(
        kind=kind,
        service=random.choice(("headscale", "cloudflare")),
        method=method,
        page_two=random.random() < 0.1,
        times=random.choice((1, 1, 1, 2, 3, 12)),
        after=random.choice((0, 0, 0, 1, 2, 4)),
        wait_s=random.choice((0.0, 1.0, 20.0, 70.0, 200.0, 400.0)),
        draw=random.getrandbits(32),
    )
