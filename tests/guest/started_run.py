"""A run in a process of its own, that can be killed with everything of it."""

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from pytest_kvmlab.deadline import Deadline
from pytest_kvmlab.lab.waits import until
from tests.guest.leftovers import Traces, processes_of

SECONDS = 60.0
ROOT = Path(__file__).parents[2]

# How a process of a run is recognised, by who it is.
ROLES = {
    "keeper": "pytest_kvmlab.keeper.supervisor",
    "PID 1": "-P -m pytest_kvmlab.keeper.private_host",
    "libvirt": "/libvirtd --config",
    "guest": "guest=kvl-",
    "worker": "exec(eval(sys.stdin.readline()))",
}


@dataclass(frozen=True)
class StartedRun:
    """A run, and the process that owns it."""

    owner: "subprocess.Popen[str]"
    traces: Traces

    def processes(self, role: str) -> list[int]:
        """Those of the run's processes that have this role."""
        return in_role(role, self.traces.names)

    def kill(self, role: str, how: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to the one process with this role."""
        (process,) = self.processes(role)
        os.kill(process, how)

    def kill_keeper_and_owner(self) -> None:
        """Kill whoever could sweep up, and wait until they are gone: who dies still has the run's lock."""
        (keeper,) = self.processes("keeper")
        os.kill(keeper, signal.SIGKILL)
        self.owner.kill()
        assert is_gone(keeper)
        self.owner.wait(SECONDS)

    def end(self) -> str:
        """Let the owner end the run, and wait for that; what it printed."""
        return self.owner.communicate(timeout=SECONDS)[0]


def in_role(role: str, names: Iterable[str]) -> list[int]:
    """Processes that have a role in some run, whose names are given as in `processes_of`."""
    # `unshare` has the words of the PID 1 that it starts on its own command line.
    found = processes_of(names).items()
    return [number for number, words in found if ROLES[role] in words and not words.startswith("unshare")]


@contextmanager
def own_a_run(
    python: list[str], runs: Path, host: str, environment: Mapping[str, str]
) -> Iterator[StartedRun]:
    """Start a process that owns a run with one idle guest."""
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [*python, "-m", "tests.guest.owned_run", host],
        cwd=ROOT,
        stdin=pipe,
        stdout=pipe,
        text=True,
        env=environment,
    ) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline(), "the run did not start"
        with _ended(StartedRun(owner, Traces.of(runs))) as run:
            yield run


@contextmanager
def run_pytest(folder: Path, runs: Path, test: str, *options: str) -> Iterator[StartedRun]:
    """Start pytest on one test file, whose tests touch `up-…` files; begun when there is the first."""
    (folder / "test_guests.py").write_text(test)
    command = [sys.executable, "-m", "pytest", "--kvm-lab", "-p", "no:cacheprovider", "-rA", *options]
    with (
        subprocess.Popen(
            command,
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"KVMLAB_RUNS": str(runs)},
        ) as owner,
        _ended(StartedRun(owner, _traces(folder, runs, owner))) as run,
    ):
        yield run


@contextmanager
def _ended(run: StartedRun) -> Iterator[StartedRun]:
    """See a run to its end, so that its keeper is not still sweeping when the folder for runs is removed."""
    try:
        yield run
    finally:
        run.owner.kill()
        run.owner.wait()
        run.traces.left_at_last()


def _traces(folder: Path, runs: Path, owner: "subprocess.Popen[str]") -> Traces:
    until(lambda: list(folder.glob("up-*")) or owner.poll(), Deadline(SECONDS))
    return Traces.of(runs)


def is_gone(process: int) -> bool:
    """Whether a process ends soon; one that nobody has asked about yet is gone, too."""
    try:
        handle = os.pidfd_open(process)
    except ProcessLookupError:
        return True
    with closing(os.fdopen(handle)):
        return bool(select.select([handle], [], [], SECONDS)[0])
