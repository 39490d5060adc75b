"""What dns-watch would do now, for a dry run; nothing is changed."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from lifecycle.dns_watch.config import watch_config
from lifecycle.dns_watch.decide import decide
from lifecycle.dns_watch.observation import Failed, Interface, Registered, Unidentified
from lifecycle.dns_watch.observe import Sources, observe
from lifecycle.dns_watch.state import Change, Moment, RecordState, State
from lifecycle.domain.events import Event
from lifecycle.domain.model import Node
from lifecycle.settings.models import DnsWatchSettings


@dataclass(frozen=True, slots=True)
class Preview:
    """The decision of one pass.

    Attributes:
        reason: why the record would stay as it is; "" if it is right or would be changed.
        events: what would be logged, a foreign record among it.
    """

    node: Node | Unidentified
    changes: tuple[Change, ...] = ()
    reason: str = ""
    events: tuple[Event, ...] = ()


def preview(settings: DnsWatchSettings, sources: Sources, interface: Interface, *, now: datetime) -> Preview:
    """Return what a pass would do in a pod that has waited for its interface long enough.

    Raises:
        ApiError: an upstream could not be read.
    """
    config = watch_config(settings)

    # No time passes: everything is due, and the wait for an interface is over.
    def clock() -> Moment:
        return Moment(sources.headscale.server_time(now), monotonic_s=0.0, jitter=0.0)

    state = State(interface_seen_s=float("-inf"), records=RecordState(reason=""))
    seen = observe(state, sources, interface, config=config, clock=clock)
    for read in (seen.node, seen.records):
        if isinstance(read, Failed):
            raise read.error
    decision = decide(state, seen, config=config, now=clock())
    if not isinstance(seen.node, Registered):
        return Preview(Unidentified(decision.state.records.reason), decision.changes, events=decision.events)
    reason = "" if decision.changes else decision.state.records.reason
    return Preview(seen.node.node, decision.changes, reason, decision.events)
