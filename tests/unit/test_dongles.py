"""Who gets which dongle, decided between real processes that end in any way they like."""

import os
import re
import signal
import stat
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from pytest_kvmlab.errors import UsbError
from pytest_kvmlab.lab.dongles import Dongles, DongleState, Holder, Wish, leases_folder
from pytest_kvmlab.spec.usb import UsbKeys
from tests.unit.fake_usb import ID, FakeHost
from tests.unit.test_capacity import Claimant, Start
from tests.unit.test_usb_devices import program_with


@pytest.fixture
def host(tmp_path: Path) -> FakeHost:
    return FakeHost(tmp_path)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    with ExitStack() as ends:

        def start(worker: str = "gw0", *, limit: int = 6, wait: float = 20.0) -> Claimant:
            claimant = Claimant(tmp_path, worker, limit, wait)
            ends.callback(claimant.end)
            return claimant

        yield start


def dongles(host: FakeHost, *wanted: str) -> Dongles:
    wishes = [Wish(f"guest-{n}", UsbKeys.model_validate(text)) for n, text in enumerate(wanted)]
    return Dongles(host.usb, wishes, "a lab")


def ports(taken: Dongles) -> dict[str, str]:
    return {lease.wish.keys.text: lease.device.port for lease in taken.leases}


def refusal(host: FakeHost, *wanted: str) -> str:
    with pytest.raises(UsbError) as caught:
        dongles(host, *wanted).take()
    return str(caught.value)


def test_a_dongle_is_found_by_identity_port_and_serial_number(host: FakeHost) -> None:
    host.plug("1-1", serial="A1")
    host.plug("1-2", serial="A2")
    host.plug("1-3", "1209:0001")
    for wanted, port in ((ID, "1-1"), (f"{ID}@1-2", "1-2"), (f"{ID}#A2", "1-2"), ("1209:0001", "1-3")):
        mine = dongles(host, wanted)
        assert mine.take()
        assert ports(mine) == {wanted: port}
        mine.give_back()


def test_equal_dongles_are_given_one_by_one_and_whoever_says_which_gets_that_one(host: FakeHost) -> None:
    host.plug("1-1", serial="A1")
    host.plug("1-2", serial="A2")
    first, second, third = dongles(host, ID, f"{ID}@1-1"), dongles(host, ID), dongles(host, ID)
    assert first.take()
    assert ports(first) == {ID: "1-2", f"{ID}@1-1": "1-1"}
    assert not second.take()
    assert re.search(
        r"0a5e:2110: 1-1 is held by guest-1 of a lab since [0-9:]+, 1-2 is held", second.obstacle
    )
    first.give_back()
    assert second.take()
    assert third.take()
    assert (ports(second), ports(third)) == ({ID: "1-1"}, {ID: "1-2"})


def test_a_lab_gets_all_of_its_dongles_or_none(host: FakeHost) -> None:
    one, other = host.plug("1-1"), host.plug("1-2", "1209:0001")
    held = host.lease(other, "another lab")
    mine = dongles(host, ID, "1209:0001")
    assert not mine.take()
    assert (mine.leases, host.usb.holder(one)) == ([], None)
    held.release()
    assert mine.take()


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        (["0a5e:2111"], "0a5e:2111, which guest-0 asks for, is not plugged in"),
        ([f"{ID}@1-9"], "0a5e:2110@1-9, which guest-0 asks for, is not plugged in"),
        ([f"{ID}#B"], "0a5e:2110#B, which guest-0 asks for, is not plugged in"),
        ([ID, f"{ID}@1-1"], "1 of 0a5e:2110 is plugged in, and 2 are asked for, by guest-0, guest-1"),
        (["1d6b:0002"], "1-2: it is a hub"),
        (["046d:c31c"], "1-3: it is a keyboard of this machine"),
    ],
)
def test_what_no_waiting_would_bring_is_refused_at_once(host: FakeHost, wanted: list[str], said: str) -> None:
    host.plug("1-1", serial="A1")
    host.plug("1-2", "1d6b:0002", kind="09")
    host.plug("1-3", "046d:c31c", interface=("03", "01", "01"), driver="usbhid")
    assert said in refusal(host, *wanted)
    assert "0a5e:2110@1-1#A1  Dongle" in refusal(host, "0a5e:2111")


def test_a_machine_without_usb_is_told_from_one_without_the_dongle(host: FakeHost) -> None:
    host.usb.bus.sysfs.rmdir()
    assert "0a5e:2110 is asked for, but this machine has no USB" in refusal(host, ID)
    assert dongles(host).take()


def test_a_dongle_that_this_user_may_not_use_is_refused(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.plug("1-1")
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may do everything
    assert "this user may not use" in refusal(host, ID)


def test_a_dongle_of_another_program_is_never_taken(host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    device = host.plug("1-1")
    mine = dongles(host, ID)
    with program_with(host.usb.bus.node(device)) as process:
        assert not mine.take()
        assert f"(process {process})" in mine.obstacle
        monkeypatch.setattr("pytest_kvmlab.lab.dongles._SECONDS_TO_END", 0.0)
        assert re.search(rf"is held by .*\(process {process}\), which keeps it", refusal(host, ID))
    assert host.usb.holder(device) is None
    assert mine.take()


def test_who_has_waited_for_long_gives_a_killed_run_time_to_end(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = host.plug("1-1")
    monkeypatch.setattr("pytest_kvmlab.lab.dongles._SECONDS_TO_END", 0.2)
    mine, lease = dongles(host, ID), host.lease(device, "another run")
    time.sleep(0.3)
    assert not mine.take()
    with program_with(host.usb.bus.node(device)):  # its QEMU, which outlives it for a moment
        lease.release()
        assert not mine.take()
    assert mine.take()


def test_who_looks_and_does_not_end_is_the_reason_why_others_wait(host: FakeHost) -> None:
    host.plug("1-1")
    mine = dongles(host, ID)
    with host.usb.looking() as may_look:
        assert may_look
        assert not mine.take()
    assert mine.obstacle == f"{ID}: another process looks who has which, and does not end"


def test_a_dongle_that_is_being_reset_is_waited_for(host: FakeHost) -> None:
    host.plug("1-1")
    mine = dongles(host, ID)
    with host.reset("1-1"):
        assert not mine.take()
        assert mine.obstacle == f"{ID}: 1-1 is held by whoever has it start over just now"
        (device,) = (each for each in host.usb.bus.devices() if each.id == ID)
        assert host.usb.state(device) == DongleState("held", "whoever has it start over just now")
    assert mine.take()


def test_a_second_lab_waits_for_the_dongle_and_then_gets_it(host: FakeHost, start: Start) -> None:
    host.plug("1-1")
    first, second = start("gw0"), start("gw1")
    assert first.does("lab", 1, ID) == "given"
    said = second.does("lab", 1, ID)
    assert said.startswith(
        "waiting for dongle 0a5e:2110: 1-1 is held by server of a lab (run 0badcafe, gw0, "
    )
    assert first.does("back") == "back"
    assert second.is_given()


def test_who_waits_too_long_is_told_who_has_the_dongle(host: FakeHost, start: Start) -> None:
    host.plug("1-1")
    first, second = start("gw0"), start("gw1", wait=0.3)
    assert first.does("lab", 1, ID) == "given"
    second.tell("lab", 1, ID)
    said = second.says()
    while said.startswith("waiting"):
        said = second.says()
    assert "waited 0.3 s in vain for dongle 0a5e:2110: 1-1 is held by server of a lab (run 0badcafe" in said


def test_the_dongle_of_a_killed_process_is_free(host: FakeHost, start: Start) -> None:
    host.plug("1-1")
    first, second = start("gw0"), start("gw1")
    assert first.does("lab", 1, ID) == "given"
    assert second.does("lab", 1, ID).startswith("waiting for dongle")
    first.process.send_signal(signal.SIGKILL)
    assert second.is_given()


def test_who_waits_for_a_dongle_holds_no_memory_and_no_other_dongle(host: FakeHost, start: Start) -> None:
    host.plug("1-1")
    host.plug("1-2", "1209:0001")
    holder, waiter, third = start("gw0"), start("gw1"), start("gw2")
    assert holder.does("lab", 2, ID) == "given"
    assert waiter.does("lab", 4, ID, "1209:0001").startswith("waiting for dongle")
    assert third.does("lab", 4, "1209:0001") == "given"
    assert holder.does("back") == "back"
    assert waiter.says_nothing() or waiter.says().startswith("waiting")
    assert third.does("back") == "back"
    assert waiter.is_given()


def test_who_waits_for_memory_holds_no_dongle(host: FakeHost, start: Start) -> None:
    device = host.plug("1-1")
    holder, waiter = start("gw0"), start("gw1")
    assert holder.does("memory", 5) == "given"
    assert waiter.does("lab", 4, ID).startswith("waiting for memory")
    assert host.usb.holder(device) is None
    assert holder.does("back") == "back"
    assert waiter.is_given()
    assert host.usb.holder(device)


def test_a_kept_lease_lasts_as_long_as_somebody_has_its_lock(host: FakeHost) -> None:
    device = host.plug("1-1")
    mine = dongles(host, ID)
    assert mine.take()
    mine.leases[0].keep()
    mine.give_back()
    assert host.usb.holder(device)


def test_leases_are_open_to_every_user_and_hold_nothing_of_a_stranger(host: FakeHost) -> None:
    device = host.plug("1-1")
    lease = host.lease(device, "x" * 10000 + "\x1b[2J")
    assert stat.S_IMODE(lease.file.stat().st_mode) == 0o666
    lease.file.write_text('{"who": "\\u001b[2J", "since": "never"}')
    holder = host.usb.holder(device)
    assert holder
    assert holder.who == "somebody who did not write down a name"
    for since in ("1e30", "1" * 400, "NaN", "Infinity"):
        lease.file.write_text(f'{{"who": "somebody", "since": {since}}}')
        assert str(host.usb.holder(device)).startswith("somebody who did not write down a name since")
    lease.file.write_text('{"who": "a\\u001b[2J", "since": 0}')
    assert isinstance(again := host.usb.holder(device), Holder)
    assert again.who == "a?[2J"


@pytest.mark.parametrize("trap", ["link", "pipe", "folder"])
def test_a_trap_in_place_of_a_lease_is_refused(host: FakeHost, trap: str) -> None:
    host.plug("1-1")
    file, elsewhere = host.usb.folder / "kvmlab-usb-1-1.lock", host.root / "precious"
    elsewhere.write_text("precious")
    match trap:
        case "link":
            file.symlink_to(elsewhere)
        case "pipe":
            os.mkfifo(file)
        case "folder":
            file.mkdir()
    assert "cannot be used" in refusal(host, ID)
    assert elsewhere.read_text() == "precious"


def test_all_users_look_in_one_place() -> None:
    assert leases_folder() == Path("/run/lock")
