"""Mutants: small changes to the program. Each breaks one guarantee, so a test must fail with it.

docs/architecture.md describes the guarantees "Never 1" to "Never 8", and its glossary explains the words in the names
of the mutants. A schedule is a random sequence of faults. A storm is the start of many pods at the same time.

The command `python -m tests.faults.mutants` prints the first schedule that detects each mutant in SCHEDULE_MUTANTS.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

REPOSITORY: Final = Path(__file__).parent.parent.parent

# The number of schedules that `main` tries for a mutant. For each existing mutant, one of the first 140 fails.
SEEDS: Final = 500

# A program that prints the first seed in a range whose schedule fails, and the invariant that it breaks.
RUN_SCHEDULES: Final = """
from tests.faults.engine import run
from tests.faults.invariants import BrokenError
from tests.faults.schedule import random_schedule, with_further_names
for seed in range({start}, {stop}):
    try:
        run({schedule})
    except BrokenError as error:
        print(seed, error)
        break
"""

# Without conftest.py, the marker `full` has to be declared by an option.
RUN_TESTS: Final = """
import sys
import pytest
options = ["-q", "-x", "--noconftest", "-p", "no:cacheprovider", "-o", "markers=full"]
sys.exit(pytest.main([*options, "{tests}"]))
"""

# The tests that detect DECISION_MUTANTS and STORM_MUTANTS.
DECISION_TESTS: Final = "tests/dns_watch/test_decide.py"
STORM_TEST: Final = "tests/fleet/test_storm.py::test_last_key_takes_at_most_150_percent_of_the_cpu_time[50-1.2]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """One change to the program, which breaks one guarantee.

    Attributes:
        guarantee: the guarantee that the mutant breaks: its number, such as "Never 1", or else its subject.
        name: what the changed program does.
        file: the path of the changed file in the folder lifecycle/.
        old: the text to replace. It occurs exactly once in the file.
        new: the replacement.
        seed: the seed of the first schedule that detects the mutant; None if other tests detect it.
        has_further_names: True if the schedule needs a workload with aliases and a shared name.
    """

    guarantee: str
    name: str
    file: str
    old: str
    new: str
    seed: int | None = None
    has_further_names: bool = False

    @contextmanager
    def applied(self) -> Iterator[Path]:
        """Yield a folder with the changed program and the tests."""
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            # The copied .pyc files stay valid, because copytree keeps modification times.
            shutil.copytree(REPOSITORY / "lifecycle", folder / "lifecycle")
            shutil.copy(REPOSITORY / "pyproject.toml", folder)
            (folder / "tests").symlink_to(REPOSITORY / "tests")
            source = folder / "lifecycle" / self.file
            text = source.read_text()
            assert text.count(self.old) == 1, f"{self.file}: {self.old!r} occurs {text.count(self.old)} times"
            source.write_text(text.replace(self.old, self.new))
            yield folder


class MutantRunner:
    """Runs tests against mutants, in forks of one process that has imported the libraries."""

    def __enter__(self) -> Self:
        # Disable plugins: pytest would need more time to load them than to run the tests.
        environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        self._server = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("fork_server.py")],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(self, *_error: object) -> None:
        self._server.communicate()

    def run_schedules(self, mutant: Mutant, seeds: range) -> str:
        """Run schedules against a mutant.

        Returns:
            The first seed that detects the mutant, and the broken invariant; "" if no seed detects it.
        """
        schedule = "with_further_names(random_schedule(seed))" if mutant.has_further_names else "random_schedule(seed)"
        status, output = self._run(mutant, RUN_SCHEDULES.format(start=seeds.start, stop=seeds.stop, schedule=schedule))
        assert status == 0, output
        return output.strip()

    def run_tests(self, mutant: Mutant, tests: str) -> str:
        """Run a test file, or one test, against a mutant.

        Returns:
            The output of pytest if a test failed; "" if all tests passed.
        """
        status, output = self._run(mutant, RUN_TESTS.format(tests=tests))
        # Status 1 means that a test failed. With any other error, such as a syntax error, the mutant is not detected.
        assert status in {0, 1}, output
        return output if status == 1 else ""

    def _run(self, mutant: Mutant, code: str) -> tuple[int, str]:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        with mutant.applied() as folder:
            self._server.stdin.write(json.dumps({"folder": str(folder), "code": code}) + "\n")
            self._server.stdin.flush()
            done = json.loads(self._server.stdout.readline())
        return done["status"], done["output"]


SCHEDULE_MUTANTS: Final = (
    Mutant(
        guarantee="Never 1",
        name="treats records with any comment of this program as its own",
        file="domain/ownership.py",
        old="            return record.comment == self.mark\n",
        new="            return record.comment.startswith(_MARK_PREFIX)\n",
        seed=0,
    ),
    Mutant(
        guarantee="Never 1",
        name="deletes the records that another workload has at a shared name",
        file="dns_watch/records.py",
        old="        ours = [record for record in at_name if record_ownership.is_owned(record)]\n",
        new="        ours = at_name\n",
        seed=0,
        has_further_names=True,
    ),
    Mutant(
        guarantee="Never 2",
        name="ignores how a node registered",
        file="domain/ownership.py",
        old="node.registered_by is not RegisterMethod.AUTH_KEY or not self.has_our_hostname(node)",
        new="not self.has_our_hostname(node)",
        seed=0,
    ),
    Mutant(
        guarantee="Never 2",
        name="ignores the owner of a node",
        file="domain/ownership.py",
        old="return node.owner.is_same(self.user)",
        new="return True",
        seed=0,
    ),
    Mutant(
        guarantee="Never 3",
        name="accepts an incomplete list of records",
        file="clients/cloudflare/reader.py",
        old="        if len(items) != total:",
        new="        if False:",
        seed=12,
    ),
    Mutant(
        guarantee="Never 3",
        name="trusts an empty list of nodes",
        file="dns_watch/nodes.py",
        old="    if not nodes and (not is_gone or is_superseded):\n        return None\n",
        new="",
        seed=39,
    ),
    Mutant(
        guarantee="Healing",
        name="treats the 404 of a proxy as a deleted node",
        file="clients/headscale/errors.py",
        old="case httpx.codes.NOT_FOUND, _ if code == _Grpc.NOT_FOUND or _is_problem(response):",
        new="case httpx.codes.NOT_FOUND, _:",
        seed=2,
    ),
    Mutant(
        guarantee="Never 4",
        name="writes the key file in place",
        file="keyfile/writer.py",
        old="    with _key_file_errors(path), _temporary(path, content, mode) as temporary:\n"
        "        temporary.replace(path)\n",
        new="    _write_new(path, content, mode)\n",
        seed=107,
    ),
    Mutant(
        guarantee="Never 5",
        name="logs the pre-auth key",
        file="apply.py",
        old="key_id=key.id, user=spec.user.label",
        new="key_id=key.secret.get_secret_value(), user=spec.user.label",
        seed=0,
    ),
    Mutant(
        guarantee="Never 6",
        name="keeps writing the record although a later pod has published its address",
        file="dns_watch/records.py",
        old="    for other in preferred:\n",
        new="    for other in preferred[:0]:\n",
        seed=45,
    ),
    Mutant(
        guarantee="Never 7",
        name="always updates the TTL",
        file="domain/model.py",
        old="        if record.ttl_s != self.ttl_s:",
        new="        if True:",
        seed=0,
    ),
    Mutant(
        guarantee="Never 8",
        name="ends dns-watch if Cloudflare fails",
        file="dns_watch/observe.py",
        old="    except ApiError as error:\n        return error\n\n\ndef _records_at_our_names(",
        new="    except ZeroDivisionError as error:\n        return error\n\n\ndef _records_at_our_names(",
        seed=4,
    ),
    Mutant(
        guarantee="Never 8",
        name="ends cleanup if a stale record cannot be deleted",
        file="cleanup/run.py",
        old='        except ApiError as error:\n            log.warning("record.delete_failed"',
        new='        except ZeroDivisionError as error:\n            log.warning("record.delete_failed"',
        seed=52,
    ),
    Mutant(
        guarantee="Healing",
        name="replaces the key after one report that the node is missing",
        file="dns_watch/healing.py",
        old="    if heal.observed is None or heal.observations < CONFIRMING_OBSERVATIONS:\n        return False\n"
        "    confirming_s = EMPTY_LIST_CONFIRMING_S if heal.observed.is_list_empty else CONFIRMING_S\n"
        "    return now.monotonic_s - heal.observed_since_s >= confirming_s\n",
        new="    return heal.observed is not None\n",
        seed=83,
    ),
    Mutant(
        guarantee="Healing",
        name="assumes that the key file contains the key that the key metadata identifies",
        file="dns_watch/healing.py",
        old=" and key_check.is_in_file else None)\n",
        new=" else None)\n",
        seed=107,
    ),
    # The rest of these mutants are bugs that the program once had. They were found with a restored database, a standard
    # output that cannot be written, a compressed response that is too large when decoded, and a record that another
    # owner changes during a pass.
    Mutant(
        guarantee="Identity",
        name="identifies its node only by the id",
        file="dns_watch/state.py",
        old="        return node.id == self.id and self.machine_key in (None, node.machine_key)\n",
        new="        return node.id == self.id\n",
        seed=51,
    ),
    Mutant(
        guarantee="Healing",
        name="identifies its key only by the id",
        file="domain/model.py",
        old="return key.id == self.pre_auth_key_id and is_same_time",
        new="return key.id == self.pre_auth_key_id",
        seed=10,
    ),
    Mutant(
        guarantee="Never 8",
        name="writes a line in the thread that logs it",
        file="runtime/output.py",
        old='        """Queue a line."""\n',
        new="        os.write(-1 if self._descriptor is None else self._descriptor, line.encode())\n",
        seed=16,
    ),
    Mutant(
        guarantee="Decoded size",
        name="decodes a response before it checks the size",
        file="clients/http.py",
        old="                if not _UNCOMPRESSED.issuperset(encodings):\n",
        new="                import gzip\n"
        "                body = b''.join(streamed.iter_raw())\n"
        "                for _ in range(encodings.count('gzip')):\n"
        "                    body = gzip.decompress(body)\n"
        "                streamed.iter_raw = lambda: [body]\n"
        "                if False:\n",
        seed=13,
    ),
    Mutant(
        guarantee="Never 1",
        name="changes records without reading them again",
        file="apply.py",
        old="    changes = _remaining_changes(changes, cloudflare)\n",
        new="",
        seed=137,
    ),
)

DECISION_MUTANTS: Final = (
    Mutant(
        guarantee="Never 1",
        name="changes records although a foreign record has the same name",
        file="dns_watch/records.py",
        old="    if in_the_way:\n        return RecordPlan(",
        new="    if False:\n        return RecordPlan(",
    ),
    Mutant(
        guarantee="Never 1",
        name="publishes a node without a publishable address",
        file="dns_watch/decide.py",
        old="    if not specs:\n        reason = records.why_unpublishable(node, config)\n",
        new="    if False:\n        reason = records.why_unpublishable(node, config)\n",
    ),
    Mutant(
        guarantee="Never 1",
        name="treats records of other workloads at an alias or shared name as its own",
        file="domain/ownership.py",
        old="            return record.type in MANAGED_TYPES and record.comment == self.mark\n",
        new="            return record.type in MANAGED_TYPES and record.comment.startswith(_MARK_PREFIX)\n",
    ),
    Mutant(
        guarantee="Never 1",
        name="creates the CNAME of an alias although the name has a TXT record",
        file="domain/foreign.py",
        old=" or record_ownership.kind is NameKind.ALIAS\n",
        new="\n",
    ),
    Mutant(
        guarantee="Never 1",
        name="adds a record at a shared name although the name has a foreign record",
        file="domain/ownership.py",
        old="        return self.kind is NameKind.SHARED and record.type in ADDRESS_TYPES and has_mark\n",
        new="        return self.kind is NameKind.SHARED\n",
    ),
    Mutant(
        guarantee="Never 1",
        name="treats records of other workloads as its own at names that its settings do not contain",
        file="domain/ownership.py",
        old="if record.comment == mark and record.type in MANAGED_TYPES]\n",
        new="if record.comment.startswith(main.mark)]\n",
    ),
    Mutant(
        guarantee="Never 1",
        name="lets an alias point to a foreign record",
        file="dns_watch/records.py",
        old="        if record_ownership.kind is NameKind.ALIAS and any(",
        new="        if False and any(",
    ),
    Mutant(
        guarantee="Never 6",
        name="lets several workloads have records at the same alias",
        file="domain/ownership.py",
        old="        return self.kind is NameKind.SHARED and record.type in ADDRESS_TYPES and has_mark\n",
        new="        return self.kind is not NameKind.MAIN and record.type in ADDRESS_TYPES and has_mark\n",
    ),
    Mutant(
        guarantee="Never 6",
        name="treats the record of another workload at a shared name as foreign",
        file="domain/ownership.py",
        old="        return self.kind is NameKind.SHARED and record.type in ADDRESS_TYPES and has_mark\n",
        new="        return False\n",
    ),
    Mutant(
        guarantee="Health",
        name="reports the records as in sync although a foreign record has one of the names",
        file="dns_watch/records.py",
        old="    if plan.in_the_way:\n        record =",
        new="    if False:\n        record =",
    ),
    Mutant(
        guarantee="Never 3",
        name="counts a failed lookup as an observation of a loss",
        file="dns_watch/decide.py",
        old="        heal=replace(state.heal, observed=None),\n",
        new="        heal=state.heal,\n",
    ),
    Mutant(
        guarantee="Never 3",
        name="confirms a loss after one minute although the list of nodes is empty",
        file="dns_watch/healing.py",
        old="EMPTY_LIST_CONFIRMING_S if heal.observed.is_list_empty else CONFIRMING_S",
        new="CONFIRMING_S",
    ),
    Mutant(
        guarantee="Never 3",
        name="continues to count observations of a loss when the list of nodes becomes empty",
        file="dns_watch/state.py",
        old="        return self.kind, self.successor is not None, self.is_list_empty\n",
        new="        return self.kind, self.successor is not None\n",
    ),
    Mutant(
        guarantee="Never 8",
        name="gives up although its node was registered",
        file="dns_watch/decide.py",
        old="    if was_registered or not 0 < config.max_retries <= state.lookups:\n",
        new="    if not 0 < config.max_retries <= state.lookups:\n",
    ),
    Mutant(
        guarantee="Never 8",
        name="gives up one lookup too late",
        file="dns_watch/decide.py",
        old="not 0 < config.max_retries <= state.lookups",
        new="not 0 < config.max_retries < state.lookups",
    ),
    Mutant(
        guarantee="Backoff",
        name="does not count failures of Headscale",
        file="dns_watch/decide.py",
        old="    failures = state.failures + 1\n",
        new="    failures = 1\n",
    ),
    Mutant(
        guarantee="Backoff",
        name="ignores for how long Cloudflare asked to wait",
        file="dns_watch/schedule.py",
        old="    return is_outdated and now.monotonic_s >= records.not_before_s\n",
        new="    return is_outdated\n",
    ),
    Mutant(
        guarantee="Backoff",
        name="polls for its node every second",
        file="dns_watch/schedule.py",
        old="doubled(1.0, (state.lookups - state.lookups_at_interface_change - 1) // 2, max_s=max_s)",
        new="1.0",
    ),
    Mutant(
        guarantee="Backoff",
        name="ignores the minimum poll interval",
        file="dns_watch/schedule.py",
        old="    return wait_s if wait_s >= min_s else add_jitter(min_s, now.jitter)\n",
        new="    return wait_s\n",
    ),
    Mutant(
        guarantee="Health",
        name="reports a record as in sync before Cloudflare has accepted the change",
        file="dns_watch/records.py",
        old='    reason = "the record is out of sync and has not been updated yet"\n',
        new='    reason = ""\n',
    ),
    Mutant(
        guarantee="Health",
        name="does not compare the records again after its node has changed",
        file="dns_watch/decide.py",
        old="        records=state.records if is_known else replace(state.records, compared_specs=None),\n",
        new="",
    ),
    Mutant(
        guarantee="Never 6",
        name="reads a created record again only after VERIFY_INTERVAL",
        file="dns_watch/records.py",
        old="        interval = min(config.poll_interval, interval)\n",
        new="        pass\n",
    ),
)

STORM_MUTANTS: Final = (
    Mutant(
        guarantee="Storm",
        name="waits for a response of Headscale only as long as for a connection",
        file="clients/headscale/errors.py",
        old="    timeout_factor=4,\n",
        new="    timeout_factor=1,\n",
    ),
)

MUTANTS: Final = (*SCHEDULE_MUTANTS, *DECISION_MUTANTS, *STORM_MUTANTS)


def main() -> None:
    """Print the first seed that detects each mutant in SCHEDULE_MUTANTS."""
    with MutantRunner() as runner:
        for mutant in SCHEDULE_MUTANTS:
            detected = runner.run_schedules(mutant, range(SEEDS)) or "NOT DETECTED"
            print(f"{mutant.guarantee}: {mutant.name}: {detected}", flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
