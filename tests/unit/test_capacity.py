"""Who gets memory and a turn to boot, decided between real processes that end in any way they like."""

import fcntl
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from pytest_kvmlab.errors import HostError
from pytest_kvmlab.journal import Journal
from pytest_kvmlab.lab.capacity import Capacity, claims_folder, memory_for_guests
from pytest_kvmlab.lab.claims import Claim, Ledger, State, has_turn

GIB = 2**30
_SECONDS = 20.0
# Longer than a claimant takes to see that it is its turn.
_A_WHILE = 0.5


class Claimant:
    """A process that claims what it is told to."""

    def __init__(self, folder: Path, worker: str, limit: int, wait: float) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.unit.claimant", folder, worker, str(limit), str(wait)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.said: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self.said.put(line.strip())

    def does(self, *words: object) -> str:
        """Tell it what to do; what it says then."""
        self.tell(*words)
        return self.says()

    def tell(self, *words: object) -> None:
        assert self.process.stdin
        print(*words, file=self.process.stdin, flush=True)

    def says(self) -> str:
        return self.said.get(timeout=_SECONDS)

    def says_nothing(self) -> bool:
        time.sleep(_A_WHILE)
        return self.said.empty()

    def says_until_given(self) -> list[str]:
        """What it says until it has what it waits for."""
        said = [self.says()]
        while said[-1].startswith(("waiting", "noted")):
            said.append(self.says())
        assert said[-1] == "given"
        return said

    def is_given(self) -> bool:
        """Whether it gets what it waits for, whatever it says before."""
        return bool(self.says_until_given())

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe
            pipe.close()


Start = Callable[..., Claimant]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    with ExitStack() as ends:

        def start(worker: str = "gw0", *, limit: int = 6, wait: float = _SECONDS) -> Claimant:
            claimant = Claimant(tmp_path, worker, limit, wait)
            ends.callback(claimant.end)
            return claimant

        yield start


def claims(folder: Path) -> list[Claim]:
    with Ledger(folder / "memory-1").claims() as found:
        return found


def test_what_there_is_is_given_at_once(start: Start, tmp_path: Path) -> None:
    assert start().does("memory", 4) == "given"
    assert start().does("memory", 2) == "given"
    assert sorted((claim.amount, claim.state) for claim in claims(tmp_path)) == [(2, "held"), (4, "held")]


def test_who_waits_says_for_what_and_gets_what_is_given_back(start: Start) -> None:
    first, second = start("gw0"), start("gw1")
    assert first.does("memory", 4) == "given"
    waiting = second.does("memory", 4)
    assert waiting.startswith("waiting for memory: ")
    assert "a test (run 0badcafe, gw0, process " in waiting
    assert first.does("back") == "back"
    assert second.is_given()


@pytest.mark.parametrize("which", ["holder", "waiter"])
def test_what_a_killed_process_had_or_waited_for_is_free(start: Start, tmp_path: Path, which: str) -> None:
    holder, waiter, last = start(), start(), start()
    assert holder.does("memory", 4) == "given"
    assert waiter.does("memory", 6).startswith("waiting")
    assert last.does("memory", 2).startswith("waiting"), "who came first is served first"
    victim = holder if which == "holder" else waiter
    os.kill(victim.process.pid, signal.SIGKILL)
    assert (waiter if which == "holder" else last).is_given()
    assert len(claims(tmp_path)) == 2, "nothing of the dead one is left"
    assert len(list((tmp_path / "memory-1").iterdir())) == 2


def test_what_is_larger_than_all_there_is_is_refused_at_once(start: Start) -> None:
    refused = start(limit=4 * GIB).does("memory", 5 * GIB)
    assert refused.startswith("refused a test (run")
    assert "needs 5 GiB of memory for its guests; all guests on this machine may have 4 GiB" in refused


def test_what_is_larger_together_with_what_one_has_is_refused_at_once(start: Start) -> None:
    claimant = start(limit=4 * GIB)
    assert claimant.does("memory", 3 * GIB) == "given"
    assert "beside 3 GiB that it has; all guests on" in claimant.does("memory", 2 * GIB)


def test_who_waits_in_vain_is_told_who_has_it(start: Start) -> None:
    assert start("gw7", limit=4 * GIB).does("memory", 3 * GIB) == "given"
    waiter = start(limit=4 * GIB, wait=0.3)
    waiter.does("memory", 2 * GIB)
    message = waiter.says()
    assert "waited 0.3 s in vain for memory: 2 GiB, where all guests together may have 4 GiB" in message
    assert "3 GiB held by a test (run 0badcafe, gw7, process " in message


def test_two_that_each_want_what_the_other_has_do_not_wait_for_ever(start: Start) -> None:
    one, two = start(limit=6), start(limit=6)
    assert one.does("memory", 3) == two.does("memory", 3) == "given"
    assert one.does("memory", 2).startswith("waiting")
    two.does("memory", 3)
    assert "noted memory" in " ".join(one.says_until_given()), "the one that waits longest"
    assert one.does("back") == one.does("back") == "back"
    assert two.is_given()


def test_who_wants_more_goes_before_who_has_nothing_if_nobody_else_can_give_back(start: Start) -> None:
    holder, other = start(limit=6), start(limit=6)
    assert holder.does("memory", 3) == "given"
    assert other.does("memory", 5).startswith("waiting")
    assert holder.does("memory", 2) == "given"
    assert holder.does("back") == holder.does("back") == "back"
    assert other.is_given()


def test_a_run_that_lets_guests_have_less_holds_up_nobody_who_lets_them_have_more(start: Start) -> None:
    holder, modest, last = start(limit=8), start(limit=4), start(limit=8)
    assert holder.does("memory", 4) == "given"
    assert modest.does("memory", 2).startswith("waiting")
    assert last.does("memory", 4) == "given"
    assert last.does("back") == holder.does("back") == "back"
    assert modest.is_given()


def test_a_builder_does_not_wait_for_those_who_may_wait_for_its_image(start: Start) -> None:
    assert start().does("memory", 6) == "given"
    builder = start()
    assert builder.does("builder", 2).startswith("noted memory")
    assert builder.is_given()


def test_kept_guests_count_and_nobody_waits_behind_one_that_waits_for_their_end(start: Start) -> None:
    keeper, large, small = start(), start(), start()
    assert [keeper.does("memory", 4), keeper.does("keep")] == ["given", "kept"]
    assert keeper.does("back") == "back"
    assert large.does("memory", 5).startswith("waiting")
    assert small.does("memory", 2) == "given"
    os.kill(keeper.process.pid, signal.SIGKILL)
    assert small.does("back") == "back"
    assert large.is_given()


def test_what_is_kept_goes_to_who_locks_it_before_its_owner_ends(start: Start, tmp_path: Path) -> None:
    owner = start()
    assert [owner.does("memory", 4), owner.does("keep")] == ["given", "kept"]
    (claim,) = claims(tmp_path)
    with claim.file.open("rb") as keeper:
        fcntl.flock(keeper, fcntl.LOCK_SH | fcntl.LOCK_NB)
        owner.end()
        assert [each.state for each in claims(tmp_path)] == ["kept"]
    assert claims(tmp_path) == []


def test_of_who_waits_for_something_else_too_is_told_that_it_waits(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "memory-1")
    blocked = Claim("who wants a dongle", "0", 2 * GIB, 4 * GIB, time.time(), "blocked")
    kept = Claim("who has some", "1", 3 * GIB, 4 * GIB, time.time(), "kept")
    wanted = Capacity("0badcafe", "gw0", 4 * GIB, 0.1, Journal(), lambda *_: None, tmp_path)
    with ledger.entered(blocked), ledger.entered(kept), pytest.raises(HostError) as failure:
        wanted.memory(2 * GIB, "a test").__enter__()
    assert "2 GiB is waited for by who wants a dongle" in str(failure.value)


# Turns to boot


def test_no_more_guests_boot_at_once_than_there_are_processors(start: Start) -> None:
    first = [start() for _ in os.sched_getaffinity(0)]
    assert [claimant.does("boot") for claimant in first] == ["given"] * len(first)
    late = start()
    late.tell("boot")
    assert late.says_nothing()
    assert first[0].does("back") == "back"
    assert late.says() == "given"


def capacity(folder: Path, wait: float = _SECONDS) -> Capacity:
    return Capacity("0badcafe", "main", GIB, wait, Journal(), lambda *_: None, folder)


@contextmanager
def all_turns(folder: Path) -> Iterator[None]:
    with ExitStack() as turns:
        for _ in os.sched_getaffinity(0):
            turns.enter_context(capacity(folder).boot("a guest", lambda: None))
        yield


def test_who_need_not_boot_any_more_does_not_wait_for_its_turn(tmp_path: Path) -> None:
    class Over(Exception): ...

    def check() -> None:
        raise Over

    with all_turns(tmp_path), pytest.raises(Over), capacity(tmp_path).boot("late", check):
        pytest.fail("it has a turn")


def test_guests_of_one_process_wait_for_each_others_turns_but_no_longer_than_they_should(
    tmp_path: Path,
) -> None:
    started = time.monotonic()
    with all_turns(tmp_path), capacity(tmp_path, wait=0.2).boot("late", lambda: None):
        assert time.monotonic() - started > 0.2


def test_a_turn_that_takes_too_long_is_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pytest_kvmlab.lab.capacity._TURN_SECONDS", 0.2)
    started = time.monotonic()
    with all_turns(tmp_path), capacity(tmp_path).boot("late", lambda: None):
        assert 0.2 < time.monotonic() - started < _SECONDS / 2


def test_what_is_free_is_not_waited_for(tmp_path: Path) -> None:
    def seconds() -> float:
        started = time.monotonic()
        with capacity(tmp_path).memory(1, "a test"), capacity(tmp_path).boot("a guest", lambda: None):
            return time.monotonic() - started

    assert min(seconds() for _ in range(5)) < 0.05


# What is decided


STATES: dict[str, State] = {"w": "waiting", "b": "blocked", "h": "held", "k": "kept"}


def claim(number: int, state: str, holder: str, amount: str) -> Claim:
    return Claim(f"test {number}", holder, int(amount), 6, float(number), STATES[state])


@pytest.mark.parametrize(
    ("written", "turn"),
    [
        ("wa6", 1),
        ("ha4 wb2 wc1", 2),
        ("ha4 wb3 wc1", None),  # nobody overtakes
        ("ha4 wa1", 2),
        ("ha4 wb6 wa1", 3),  # b cannot have its turn before a has
        ("ha3 hb3 wc1 wb1 wa1", 4),  # b waits longest of those who could give back
        ("ha3 hb2 wc4 wa2", None),  # b will give back
        ("ka4 wb6 wc2", 3),  # b waits for the end of what is kept
        ("ka4 hb1 wb2", None),  # as b does here, who goes on for ever
        ("ka6 wb1", None),
        ("ha4 bb3 wc2", 3),  # who is blocked is in nobody's way
    ],
)
def test_whose_turn_it_is(written: str, turn: int | None) -> None:
    all_claims = [claim(number, *each) for number, each in enumerate(written.split(), 1)]
    granted = [number for number, each in enumerate(all_claims, 1) if has_turn(each, all_claims)]
    assert granted == ([] if turn is None else [turn])


def test_who_is_blocked_gives_nothing_back_either() -> None:
    all_claims = [claim(number, *each) for number, each in enumerate(["ha3", "hb3", "ba1", "wb1"], 1)]
    assert has_turn(all_claims[3], all_claims)


# What there is


def test_guests_may_have_most_of_what_the_machine_has(tmp_path: Path) -> None:
    own, groups = tmp_path / "own", tmp_path / "groups"
    (tmp_path / "meminfo").write_text("MemFree:   1 kB\nMemTotal:       1000000 kB\n")
    own.write_text("4:memory:/old\n0::/job/step\n")
    assert memory_for_guests(tmp_path / "meminfo", groups, own) == 921_600_000
    (groups / "job" / "step").mkdir(parents=True)
    (groups / "job" / "step" / "memory.max").write_text("max\n")
    assert memory_for_guests(tmp_path / "meminfo", groups, own) == 921_600_000
    (groups / "job" / "memory.max").write_text("1000000\n")
    assert memory_for_guests(tmp_path / "meminfo", groups, own) == 900_000


def test_this_machine_has_memory() -> None:
    assert GIB / 8 < memory_for_guests() < os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def test_all_runs_of_a_user_meet_in_one_place(monkeypatch: pytest.MonkeyPatch) -> None:
    before = claims_folder()
    monkeypatch.setenv("KVMLAB_RUNS", "/tmp/elsewhere")
    monkeypatch.setenv("TMPDIR", "/tmp/elsewhere")
    assert claims_folder() == before


def test_a_folder_that_others_may_write_to_is_refused(tmp_path: Path) -> None:
    (tmp_path / "memory-1").mkdir()
    (tmp_path / "memory-1").chmod(0o777)
    with pytest.raises(HostError, match="others may write to it"), capacity(tmp_path).memory(1, "a test"):
        pytest.fail("it was used")


def test_a_process_that_was_stopped_while_it_looked_at_the_claims_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pytest_kvmlab.lab.claims._STILL_SECONDS", 0.2)
    ledger = Ledger(tmp_path / "of-a-user" / "memory")
    with ledger.claims():
        told = rf"process {os.getpid()} has held .*memory for 0\.2 s, and all runs wait for it"
        with pytest.raises(HostError, match=told), ledger.claims():
            pass
    with ledger.claims() as claims:
        assert claims == []
