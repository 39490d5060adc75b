"""Write each certificate authority of certifi to a file of its own, in the folder that `lifecycle.clients.trust` reads.

OpenSSL then loads only the authority that it needs, which it finds by the hash in the file's name. Loading all
authorities would take about 50 ms and 3 MiB. Run this script with the interpreter for which certifi is installed.
"""

import subprocess
import sys
from pathlib import Path

import certifi

END = "-----END CERTIFICATE-----\n"


def write_hashed(bundle: str, folder: Path) -> None:
    """Write each certificate of a bundle as `openssl rehash` names it: HASH.0, HASH.1 if HASH.0 exists, and so on."""
    folder.mkdir(parents=True)
    for text in bundle.split(END)[:-1]:
        certificate = text[text.index("-----BEGIN") :] + END
        hashed = subprocess.run(
            ["openssl", "x509", "-noout", "-subject_hash"],  # noqa: S607 - found on PATH
            input=certificate,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        ).stdout.strip()
        number = sum(1 for _ in folder.glob(f"{hashed}.*"))
        (folder / f"{hashed}.{number}").write_text(certificate)


if __name__ == "__main__":
    write_hashed(Path(certifi.where()).read_text(), Path(sys.prefix, "etc/ssl/certs"))
