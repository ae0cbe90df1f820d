"""What a guest sees of its USB devices is held against what it should have."""

from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

from pytest_kvmlab.deadline import Deadline
from pytest_kvmlab.errors import UsbError
from pytest_kvmlab.lab.usb_seen import prove_gone, prove_plugged

ID = "0a5e:2110"
SOON = 0.2


def dongle(name: str, serial: str | None = None, *, plugged: bool = True) -> Any:
    return SimpleNamespace(name=name, id=ID, serial=serial, is_plugged=plugged)


class Guest:
    """A guest that should have some devices, and answers what its kernel has, one answer after the other."""

    name = "web"

    def __init__(self, *dongles: Any, sees: Callable[[int], str], ok: bool = True) -> None:
        plugged = [each for each in dongles if each.is_plugged]
        usb = SimpleNamespace(wanted=dongles, plugged=plugged)
        self.machine = SimpleNamespace(usb=usb, phase=lambda _name: nullcontext())
        self.spec = SimpleNamespace(login=SimpleNamespace(channel="serial"))
        self.asked = 0
        self._sees = sees
        self._ok = ok

    def ask(self, _command: str, _deadline: Deadline) -> Any:
        self.asked += 1
        return SimpleNamespace(ok=self._ok, stdout=self._sees(self.asked))


def plugged(guest: Any) -> None:
    prove_plugged(guest, Deadline(SOON))


def gone(guest: Any, pulled_out: Any) -> None:
    prove_gone(guest, pulled_out, Deadline(SOON))


def test_a_guest_that_does_not_see_its_dongle_is_told_with_what_it_sees() -> None:
    guest = Guest(dongle("licence", "A1"), dongle("second", "A2"), sees=lambda _: f"1d6b:0002 \n{ID} A2\n")
    with pytest.raises(UsbError) as caught:
        plugged(guest)
    told = str(caught.value)
    assert "web does not see licence" in told
    assert "1d6b:0002" in told
    assert f"{ID} A2" in told
    assert guest.asked > 1


def test_one_of_two_equal_dongles_is_not_both() -> None:
    with pytest.raises(UsbError, match="web does not see second"):
        plugged(Guest(dongle("first"), dongle("second"), sees=lambda _: f"{ID} \n"))


def test_a_dongle_that_the_guest_sees_after_a_while_is_there() -> None:
    guest = Guest(dongle("licence"), sees=lambda time: f"{ID} \n" if time > 1 else "")
    plugged(guest)
    assert guest.asked == 2


def test_a_guest_that_cannot_be_asked_is_taken_at_the_word_of_qemu() -> None:
    plugged(Guest(dongle("licence"), sees=lambda _: "", ok=False))
    gone(Guest(sees=lambda _: f"{ID} \n", ok=False), dongle("licence", plugged=False))


def test_a_dongle_that_qemu_lost_is_missed_whatever_the_guest_sees() -> None:
    with pytest.raises(UsbError, match="web has lost licence"):
        plugged(Guest(dongle("licence", plugged=False), sees=lambda _: f"{ID} \n"))


def test_a_guest_that_still_sees_what_was_pulled_out_is_told() -> None:
    guest = Guest(sees=lambda _: f"{ID} A1\n")
    with pytest.raises(UsbError, match="web still sees licence, which was pulled out of it"):
        gone(guest, dongle("licence", "A1", plugged=False))
    assert guest.asked > 1


def test_a_dongle_that_the_guest_loses_after_a_while_is_gone() -> None:
    guest = Guest(sees=lambda time: "" if time > 1 else f"{ID} A1\n")
    gone(guest, dongle("licence", "A1", plugged=False))
    assert guest.asked == 2


def test_an_equal_dongle_that_stays_is_not_the_one_that_was_pulled_out() -> None:
    stays, pulled_out = dongle("first"), dongle("second", plugged=False)
    gone(Guest(stays, sees=lambda _: f"{ID} \n"), pulled_out)
    with pytest.raises(UsbError, match="still sees second"):
        gone(Guest(stays, sees=lambda _: f"{ID} \n{ID} \n"), pulled_out)
