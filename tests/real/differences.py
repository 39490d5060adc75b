"""Compare a real and a simulated response, and describe their differences, one per line."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

_ABSENT = object()


def differences(real: Any, simulated: Any, path: str = "") -> Iterator[str]:
    """Yield a line for each difference of two values, such as `nodes[].online: real absent, simulated True`."""
    match real, simulated:
        case dict(), dict():
            for name in sorted({*real, *simulated}, key=str):
                inner = f"{path}.{name}" if path else str(name)
                yield from differences(real.get(name, _ABSENT), simulated.get(name, _ABSENT), inner)
        case list(), list() if len(real) == len(simulated):
            for real_item, simulated_item in zip(real, simulated, strict=True):
                yield from differences(real_item, simulated_item, f"{path}[]")
        case _ if real != simulated:
            yield f"{path or 'value'}: real {_text(real)}, simulated {_text(simulated)}"


def distinct(values: Iterable[Any]) -> list[Any]:
    """Return the values without repetitions, in an order that does not depend on the order of the values."""
    found: list[Any] = []
    for value in values:
        if value not in found:
            found.append(value)
    return sorted(found, key=str)


def _text(value: Any) -> str:
    return "absent" if value is _ABSENT else repr(value)
