"""The group of clients that read Headscale, Cloudflare and the key file."""

from __future__ import annotations

from dataclasses import dataclass

from lifecycle.clients.cloudflare.reader import CloudflareReader
from lifecycle.clients.headscale.reader import HeadscaleReader
from lifecycle.keyfile.reader import KeyFileReader


@dataclass(frozen=True, slots=True)
class Readers:
    """The clients with which plans are made. In a dry run, none of them can write."""

    headscale: HeadscaleReader
    cloudflare: CloudflareReader
    key_file: KeyFileReader
