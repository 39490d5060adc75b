"""The program with one of its promises broken, each by a line or two: what the schedules have to notice.

`python -m tests.faults.mutants` looks for the first seed that notices each one, for the table below.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

REPOSITORY: Final = Path(__file__).parent.parent.parent

# Far beyond the seeds that are known to notice.
SEEDS: Final = 500

# Prints the first seed of a range that notices something, and what.
PROGRAM: Final = """
import sys
from tests.faults.engine import BrokenError, run
from tests.faults.schedule import drawn
for seed in range(int(sys.argv[1]), int(sys.argv[2])):
    try:
        run(drawn(seed))
    except BrokenError as error:
        print(seed, error)
        break
"""


@dataclass(frozen=True, slots=True)
class Mutant:
    """One promise, broken.

    Attributes:
        promise: which one.
        what: what the program does now, in words.
        file: below lifecycle/.
        old: stands there exactly once.
        seed: the first that notices.
    """

    promise: str
    what: str
    file: str
    old: str
    new: str
    seed: int

    def noticed_by(self, seeds: range) -> str:
        """Run schedules against this mutant.

        Returns:
            The first seed that notices something, and what; "" when none does.
        """
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            shutil.copytree(REPOSITORY / "lifecycle", folder / "lifecycle", ignore=shutil.ignore_patterns("*.pyc"))
            (folder / "tests").symlink_to(REPOSITORY / "tests")
            source = folder / "lifecycle" / self.file
            text = source.read_text()
            assert text.count(self.old) == 1, f"{self.file}: {self.old!r} is there {text.count(self.old)} times"
            source.write_text(text.replace(self.old, self.new))
            done = subprocess.run(
                [sys.executable, "-B", "-c", PROGRAM, str(seeds.start), str(seeds.stop)],
                cwd=folder,
                capture_output=True,
                text=True,
                check=False,
            )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()


MUTANTS: Final = (
    Mutant(
        "Never 1",
        "takes any mark of our kind for ours",
        "domain/ownership.py",
        "            return record.comment == self.mark\n",
        "            return record.comment.startswith(_MARK_FAMILY)\n",
        0,
    ),
    Mutant(
        "Never 2",
        "does not ask how a node was registered",
        "domain/ownership.py",
        " and node.registered_by is RegisterMethod.AUTH_KEY and self._is_our_users(node)",
        " and self._is_our_users(node)",
        0,
    ),
    Mutant(
        "Never 2",
        "does not ask whose a node is",
        "domain/ownership.py",
        " and node.registered_by is RegisterMethod.AUTH_KEY and self._is_our_users(node)",
        " and node.registered_by is RegisterMethod.AUTH_KEY",
        0,
    ),
    Mutant(
        "Never 3",
        "takes a page for whole that is not",
        "clients/cloudflare/reader.py",
        "        if len(items) != count:",
        "        if False:",
        4,
    ),
    Mutant(
        "Never 3",
        "believes a list that nobody is on",
        "dns_watch/nodes.py",
        "    if not nodes:\n        return None\n",
        "",
        39,
    ),
    Mutant(
        "Healing",
        "takes any 404 for Headscale's word that a node is gone",
        "clients/headscale/errors.py",
        "if code == _GRPC_NOT_FOUND or _is_problem(response):",
        "if True:",
        2,
    ),
    Mutant(
        "Never 4",
        "writes the key where it is read",
        "keyfile/writer.py",
        "    with _temporary(path, content, mode) as temporary:\n"
        "        _check_replaceable(path)\n        temporary.replace(path)\n",
        "    _write_new(path, content, mode)\n",
        107,
    ),
    Mutant(
        "Never 5",
        "logs the key instead of its id",
        "apply.py",
        "key_id=key.id, user=spec.user.label",
        "key_id=key.secret.get_secret_value(), user=spec.user.name",
        0,
    ),
    Mutant(
        "Never 6",
        "does not stand down for a later pod that has the name",
        "dns_watch/records.py",
        "    for successor in successors:\n",
        "    for successor in successors[:0]:\n",
        45,
    ),
    Mutant(
        "Never 7",
        "finds that the TTL always differs",
        "domain/model.py",
        "        if record.ttl_s != self.ttl_s:",
        "        if True:",
        0,
    ),
    Mutant(
        "Never 8",
        "ends dns-watch with the first failure of Cloudflare",
        "dns_watch/observe.py",
        "        return RecordsRead(records, apex, tuple(later))\n    except ApiError as error:\n",
        "        return RecordsRead(records, apex, tuple(later))\n    except ZeroDivisionError as error:\n",
        4,
    ),
    Mutant(
        "Never 8",
        "ends cleanup when a stale record cannot be deleted",
        "cleanup/run.py",
        '        except ApiError as error:\n            log.warning("record.delete_failed"',
        '        except ZeroDivisionError as error:\n            log.warning("record.delete_failed"',
        90,
    ),
    Mutant(
        "Healing",
        "believes one look that a node is gone",
        "dns_watch/healing.py",
        "        and losses.observations >= CONFIRMING_OBSERVATIONS\n"
        "        and now.monotonic_s - losses.since_s >= CONFIRMING_S\n",
        "",
        83,
    ),
    Mutant(
        "Healing",
        "takes the noted key for the one in the file",
        "dns_watch/healing.py",
        " and check.is_in_file:\n",
        ":\n",
        107,
    ),
)


def main() -> None:
    """Print for each mutant what notices it first."""
    for mutant in MUTANTS:
        print(f"{mutant.promise}: {mutant.what}: {mutant.noticed_by(range(SEEDS)) or 'NOBODY'}", flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
