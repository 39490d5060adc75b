"""Describe the differences between a real and a simulated response, one per line."""

from __future__ import annotations

from collections.abc import Iterator
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


def _text(value: Any) -> str:
    return "absent" if value is _ABSENT else repr(value)
