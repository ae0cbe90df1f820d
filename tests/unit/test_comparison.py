"""Planted differences between runs: each is found, and nothing else is."""

import random
from collections.abc import Sequence
from datetime import date

import pytest

from pytest_kvmlab.compare.comparison import Comparison, Side, compare
from pytest_kvmlab.compare.times import PhaseTimes
from pytest_kvmlab.errors import ConfigError
from pytest_kvmlab.report.comparison import document, notes, rows, verdict
from pytest_kvmlab.spec.known_issues import KnownTest
from pytest_kvmlab.spec.run_record import DeviceRecord, Outcome, RunRecord, TestRecord
from tests.unit.recorded_runs import VIRTIO, case, finding, guest, luck, run, system

KNOWN = KnownTest(
    id="test_shop.py::*", reason="planted", link="https://bugs.example.org/1", until=date(2026, 6, 1)
)


def compared(before: Sequence[RunRecord], after: Sequence[RunRecord]) -> Comparison:
    return compare(Side("before", tuple(before)), Side("after", tuple(after)))


def cases(*outcomes: Outcome) -> list[RunRecord]:
    return [run(case("test_it", outcome), case("test_other")) for outcome in outcomes]


@pytest.mark.parametrize(
    ("before", "after", "change"),
    [
        (["passed"], ["passed"], None),
        (["passed"], ["failed"], "newly failing"),
        (["passed", "passed"], ["error"], "newly failing"),
        (["xfailed"], ["failed"], "newly failing"),
        (["failed"], ["passed"], "newly passing"),
        (["failed"], ["error"], "still failing"),
        (["passed"], ["passed", "failed"], "flaky"),
        (["passed", "failed"], ["failed"], "flaky"),
        (["passed", "failed"], ["passed"], None),
        (["passed"], ["skipped"], "now skipped"),
        (["skipped"], ["skipped"], None),
    ],
)
def test_what_became_of_a_test(before: list[Outcome], after: list[Outcome], change: str | None) -> None:
    found = compared(cases(*before), cases(*after)).tests
    assert [test.change for test in found] == ([change] if change else [])


@pytest.mark.parametrize(
    ("before", "after", "change"),
    [
        ([case("test_it")], [], "gone"),
        ([], [case("test_it")], "new"),
        ([], [case("test_it", "failed")], "newly failing"),
    ],
)
def test_a_test_on_one_side_only(before: list[TestRecord], after: list[TestRecord], change: str) -> None:
    found = compared([run(case("test_other"), *before)], [run(case("test_other"), *after)])
    assert [test.change for test in found.tests] == [change]


def test_a_test_that_was_repeated_until_it_passed_is_flaky() -> None:
    found = compared([run(case("test_it"))], [run(case("test_it", attempts=2))])
    assert [test.change for test in found.tests] == ["flaky"]


def test_runs_of_different_suites_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"before and after have no test in common: suites shop and shop"):
        compared([run(case("test_it"))], [run(case("test_that"))])


@pytest.mark.parametrize(("today", "regressions"), [(date(2026, 6, 1), 0), (date(2026, 6, 2), 1)])
def test_a_known_issue_is_no_regression_until_its_last_day(today: date, regressions: int) -> None:
    before, after = Side("before", tuple(cases("passed"))), Side("after", tuple(cases("failed")))
    found = compare(before, after, known=[KNOWN], today=today)
    assert len(found.regressions) == regressions
    assert "planted (https://bugs.example.org/1)" in next(iter(rows(found)))[2]


def with_messages(*findings: str, excused: bool = False) -> RunRecord:
    return run(
        case("test_it", "passed", guest(findings=[finding(each, excused=excused) for each in findings]))
    )


def test_a_new_kernel_message_is_a_regression_and_an_old_one_is_not() -> None:
    found = compared([with_messages("old", "gone")], [with_messages("old", "fresh")])
    assert found.regressions == ["kernel: warning: fresh"]
    assert [message.finding.title for message in found.silent] == ["gone"]


def test_an_excused_message_is_told_and_is_no_regression() -> None:
    found = compared([with_messages()], [with_messages("fresh", excused=True)])
    assert found.regressions == []
    assert ("new kernel message", "warning: fresh", "expected") in list(rows(found))


NO_DRIVER = VIRTIO.model_copy(update={"driver": ""})
DONGLE = DeviceRecord(bus="usb", id="0a5e:2110", driver="ftdi_sio")


def with_system(*modules: str, devices: Sequence[DeviceRecord] = (VIRTIO,), kernel: str = "6.1") -> RunRecord:
    seen = system(*modules, devices=devices, kernel=kernel)
    return run(case("test_it", "passed", guest(system="x", kernel=kernel)), systems={"x": seen})


@pytest.mark.parametrize(
    ("after", "lost", "regressions"),
    [
        (with_system("ext4"), [], 0),
        (with_system("ext4", "btrfs", devices=[VIRTIO, DONGLE]), [], 0),
        (with_system("ext4", devices=[]), ["device pci 1af4:1041"], 1),
        (with_system("ext4", devices=[NO_DRIVER]), ["driver of pci 1af4:1041"], 1),
        (with_system(), ["module ext4"], 1),
        (with_system(kernel="6.12"), ["module ext4"], 0),
    ],
)
def test_what_a_guest_lost(after: RunRecord, lost: list[str], regressions: int) -> None:
    found = compared([with_system("ext4")], [after])
    assert [f"{loss.what} {loss.name}" for loss in found.losses] == lost
    assert len(found.regressions) == regressions


def test_a_dongle_that_only_one_test_asked_for_is_missed_there() -> None:
    def seen(*dongles: DeviceRecord) -> RunRecord:
        systems = {"plain": system(), "dongle": system(devices=[VIRTIO, *dongles])}
        tests = [case(f"test_{each}", "passed", guest(system=each)) for each in systems]
        return run(*tests, case("test_again", "passed", guest(system="dongle")), systems=systems)

    found = compared([seen(DONGLE)], [seen()])
    assert found.regressions == ["web (debian-12) lost device usb 0a5e:2110"]


def test_what_was_not_always_there_is_not_lost() -> None:
    found = compared([with_system("ext4", devices=[VIRTIO, DONGLE]), with_system()], [with_system()])
    assert found.losses == ()


def timed(
    chance: random.Random,
    count: int,
    *,
    ready: float = 2.0,
    drift: float = 1.0,
    pressure: float | None = None,
) -> RunRecord:
    """A run whose guests take as long as guests do: some always longer than most."""
    times = [drift * (ready + chance.expovariate(10) + abs(chance.gauss(0, 0.05))) for _ in range(count)]
    tests = [case(f"test_{at}", "passed", guest(phases={"ready": each})) for at, each in enumerate(times)]
    return run(*tests, pressure=pressure)


def judged(found: Comparison) -> PhaseTimes:
    return next(times for times in found.times if times.phase == "ready")


@pytest.mark.parametrize("seed", range(5))
def test_a_service_that_starts_later_by_a_third_is_found_and_nothing_else(seed: int) -> None:
    chance = luck(seed)
    found = compared([timed(chance, 12)], [timed(chance, 12, ready=2.6)])
    assert judged(found).verdict == "slower"
    assert judged(found).shift == pytest.approx(0.6, abs=0.2)
    assert [found.slowdowns, found.regressions] == [[judged(found)], []]


@pytest.mark.parametrize("seed", range(40))
def test_an_unchanged_suite_raises_no_alarm(seed: int) -> None:
    """Runs differ as a whole, too: the machine is busier on one day than on another."""
    chance = luck(seed)
    runs = [timed(chance, 15, drift=chance.uniform(0.97, 1.03)) for _ in range(6)]
    found = compared(runs[:5], runs[5:])
    assert [found.slowdowns, found.regressions] == [[], []]
    assert verdict(found) == "nothing is worse than before"


@pytest.mark.parametrize("seed", range(10))
def test_runs_that_were_slow_as_a_whole_are_no_alarm_where_runs_are_many(seed: int) -> None:
    chance = luck(seed)
    runs = [timed(chance, 15, drift=chance.choice([1.0, 1.0, 1.5, 2.0])) for _ in range(12)]
    assert compared(runs[:6], runs[6:]).slowdowns == []


def test_where_runs_are_many_a_phase_that_happens_once_in_each_is_judged() -> None:
    chance = luck(0)
    before, after = ([timed(chance, 1, ready=ready) for _ in range(6)] for ready in (2.0, 2.6))
    assert judged(compared(before, after)).verdict == "slower"


SLOW = "test_shop.py::test_3"


def with_one_slow_test(chance: random.Random, seconds: float) -> RunRecord:
    """A run of twelve tests, one of which takes so long."""
    means = {f"test_{at}": seconds if at == 3 else 2.0 for at in range(12)}
    calls = {name: mean + chance.random() / 9 for name, mean in means.items()}
    return run(*(case(name, "passed", call=call) for name, call in calls.items()))


@pytest.mark.parametrize(("runs", "verdict"), [(5, "too few samples"), (7, "slower")])
def test_one_test_of_many_needs_more_runs_and_is_never_called_as_before(runs: int, verdict: str) -> None:
    chance = luck(0)
    before, after = ([with_one_slow_test(chance, each) for _ in range(runs)] for each in (2.0, 2.6))
    found = compared(before, after)
    assert {times.subject: times.verdict for times in found.times}[SLOW] == verdict
    assert [times.subject for times in found.slowdowns] == [SLOW] * (runs == 7)
    told = [note for note in notes(found) if "7 runs on each side would tell" in note]
    assert len(told) == (runs == 5)


@pytest.mark.parametrize(
    ("pressures", "verdict"),
    [
        ((0.1, 0.12), "slower"),
        ((0.1, 0.4), "busier machine"),
        ((None, 0.4), "slower"),
        ((0.1, None), "slower"),
    ],
)
def test_a_single_run_on_a_busier_machine_is_not_judged(
    pressures: tuple[float | None, float | None], verdict: str
) -> None:
    chance = luck(0)
    before, after = (
        timed(chance, 12, ready=ready, pressure=pressure)
        for ready, pressure in zip((2.0, 2.6), pressures, strict=True)
    )
    found = compared([before], [after])
    assert judged(found).verdict == verdict
    assert any("busier" in note for note in notes(found)) is (verdict == "busier machine")


def test_what_is_faster_is_told() -> None:
    chance = luck(0)
    found = compared([timed(chance, 12, ready=3.0)], [timed(chance, 12)])
    assert judged(found).verdict == "faster"
    assert found.slowdowns == []


def test_less_than_the_runs_before_differed_is_noise() -> None:
    chance = luck(0)
    before = [timed(chance, 12, ready=2.0), timed(chance, 12, ready=3.0)]
    assert judged(compared(before, [timed(chance, 12, ready=3.2)])).verdict == "as before"


def test_too_few_samples_are_told() -> None:
    chance = luck(0)
    found = compared([timed(chance, 2)], [timed(chance, 2, ready=9.0)])
    assert {times.verdict for times in found.times} == {"too few samples"}
    assert any("have too few samples" in note for note in notes(found))


def test_a_phase_that_failed_does_not_count() -> None:
    good = guest(phases={"ready": 1.0})
    late = good.phases[0].model_copy(update={"outcome": "GuestError: it did not get ready"})
    broken = good.model_copy(update={"phases": (late,)})
    found = compared([run(case("test_it", "passed", good))], [run(case("test_it", "error", broken))])
    assert [times for times in found.times if times.phase == "ready"] == []


def test_the_document_for_scripts_has_everything() -> None:
    found = document(compared(cases("passed"), cases("failed")))
    assert found["regressions"] == ["test_shop.py::test_it fails"]
    assert found["tests"][0]["change"] == "newly failing"
    assert found["verdict"] == "1 regressions, 0 phases slower"
