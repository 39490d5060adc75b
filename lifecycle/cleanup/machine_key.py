"""Derive the public machine key, which Headscale shows, from the private machine key in tailscale's state."""

from __future__ import annotations

import re

_PRIVATE_KEY = re.compile(r"privkey:([0-9a-f]{64})", re.ASCII)

# Source: RFC 7748, section 5: X25519. `_x25519` follows the pseudocode there.
_PRIME = 2**255 - 19
_A24 = 121665
_BASE_POINT = 9


def public_machine_key(private: bytes) -> str | None:
    """Return the key in Headscale's notation; None if the private key is not in tailscale's notation."""
    match = _PRIVATE_KEY.fullmatch(private.decode(errors="replace").strip())
    if match is None:
        return None
    return f"mkey:{_x25519(bytes.fromhex(match[1])).hex()}"


def _x25519(scalar: bytes) -> bytes:
    """Return the public key for a private key.

    The duration depends on the key. This is safe here, because no other program can measure it.
    """
    clamped = bytearray(scalar)
    clamped[0] &= 248
    clamped[31] = (clamped[31] & 127) | 64
    number = int.from_bytes(clamped, "little")
    x2, z2, x3, z3 = 1, 0, _BASE_POINT, 1
    swapped = 0
    for position in range(254, -1, -1):
        bit = (number >> position) & 1
        if swapped ^ bit:
            x2, z2, x3, z3 = x3, z3, x2, z2
        swapped = bit
        a, b = (x2 + z2) % _PRIME, (x2 - z2) % _PRIME
        aa, bb = a * a % _PRIME, b * b % _PRIME
        e = (aa - bb) % _PRIME
        da, cb = (x3 - z3) * a % _PRIME, (x3 + z3) * b % _PRIME
        x3, z3 = (da + cb) ** 2 % _PRIME, _BASE_POINT * (da - cb) ** 2 % _PRIME
        x2, z2 = aa * bb % _PRIME, e * (aa + _A24 * e) % _PRIME
    if swapped:
        x2, z2 = x3, z3
    return (x2 * pow(z2, _PRIME - 2, _PRIME) % _PRIME).to_bytes(32, "little")
