"""Which accelerator is used, and that it is found out only once."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pytest_kvmlab import HostFacts
from pytest_kvmlab.checks import KVM, Finding
from pytest_kvmlab.errors import GuestError, HostError
from pytest_kvmlab.lab import accelerator
from pytest_kvmlab.lab.accelerator import prove
from pytest_kvmlab.lab.images import Images
from pytest_kvmlab.lab.launch import Launcher
from pytest_kvmlab.lab.store import Store
from pytest_kvmlab.plan.guest import Accel

Launchers = Callable[[Accel], Launcher]


@pytest.fixture
def booting(launcher: Launcher) -> Launchers:
    return lambda accel: _launcher(launcher, accel)


@pytest.fixture
def without_image(launcher: Launcher, tmp_path: Path) -> Launchers:
    """Launchers whose images cannot be built: the store would be below a file."""
    (tmp_path / "file").write_text("in the way")
    images = Images(Store(tmp_path / "file" / "store"), {}, lambda _step, _share: None)
    return lambda accel: replace(_launcher(launcher, accel), images=images)


def _launcher(launcher: Launcher, accel: Accel) -> Launcher:
    """One with nothing in it that is in the other already."""
    assembly = replace(launcher.assembly, accel=accel, timeout_scale=1.0)
    return Launcher(assembly, launcher.images, launcher.capacity)


def never(accel: Accel) -> Launcher:
    raise AssertionError(f"a guest would be started to prove {accel}")


def test_emulation_is_measured_once_and_remembered(booting: Launchers, tmp_path: Path) -> None:
    found = prove("tcg", booting, tmp_path)
    assert (found.accel, found.why) == ("tcg", "emulation was asked for")
    assert 1 <= found.timeout_scale <= 12
    assert prove("tcg", never, tmp_path) == found


@pytest.mark.parametrize(
    "content",
    ["", "[]", "null", "{", '{"accel": "xen", "why": "", "timeout_scale": 1.0}', '{"accel": "tcg"}', "\0"],
)
def test_a_damaged_memory_is_no_memory(content: str, without_image: Launchers, tmp_path: Path) -> None:
    prove("tcg", without_image, tmp_path)
    remembered = remember(tmp_path, content)
    assert prove("tcg", without_image, tmp_path).why.startswith("unproved: ")
    assert remembered.read_text() == content


def remember(cache: Path, content: str) -> Path:
    """Put something where a verdict on emulation would be."""
    file = cache / f"{accelerator._key('tcg', 1.0)}.json"
    file.write_text(content)
    return file


def test_what_could_not_be_proved_is_not_remembered(without_image: Launchers, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    found = prove("tcg", without_image, cache)
    assert found.accel == "tcg"
    assert "the image store cannot be written to" in found.why
    assert not cache.exists()


def test_kvm_that_does_not_work_is_an_error_with_the_reason(without_image: Launchers, tmp_path: Path) -> None:
    remembered = {"accel": "tcg", "why": "a guest did not boot", "timeout_scale": 5.0}
    (tmp_path / f"{accelerator._key('kvm', 1.0)}.json").write_text(json.dumps(remembered))
    with pytest.raises(HostError, match=r"KVM does not work here: a guest did not boot(?s:.*)check 'kvm'"):
        prove("kvm", without_image, tmp_path)


def test_where_a_guest_does_not_boot_with_kvm_emulation_is_used_and_says_why(
    booting: Launchers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine whose KVM hangs cannot be had at will; what comes of it can."""

    def without_kvm(accel: Accel) -> Launcher:
        if accel == "kvm":
            raise GuestError("probe cannot be created: error: it hangs", phase="create")
        return booting(accel)

    monkeypatch.setattr(accelerator, "KVM", replace(KVM, look=lambda: Finding(True, "there")))
    found = prove("auto", without_kvm, tmp_path)
    assert found.accel == "tcg"
    assert re.fullmatch(r"/dev/kvm opens, but a guest does not boot with it within 8 s: it hangs", found.why)
    assert prove("auto", never, tmp_path) == found


@pytest.mark.parametrize("changed", ["kernel", "boot", "user", "patience"])
def test_a_verdict_is_for_one_boot_kernel_and_user(monkeypatch: pytest.MonkeyPatch, changed: str) -> None:
    before = accelerator._key("auto", 1.0)
    assert accelerator._key("auto", 1.0) == before
    match changed:
        case "kernel":
            monkeypatch.setattr("platform.release", lambda: "6.99.0")
        case "boot":
            monkeypatch.setattr(Path, "read_text", lambda _: "another-boot")
        case "user":
            monkeypatch.setattr("os.getuid", lambda: 65534)
    assert accelerator._key("auto", 2.0 if changed == "patience" else 1.0) != before


def test_the_facts_of_the_host_name_what_guests_are_started_with(
    kvm_host: HostFacts, launcher: Launcher
) -> None:
    assert (kvm_host.accelerator, kvm_host.timeout_scale) == (
        launcher.assembly.accel,
        launcher.assembly.timeout_scale,
    )
