"""What a template depends on, and for which guests there is none."""

import os
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from pytest_kvmlab.drivers.libvirt import Versions
from pytest_kvmlab.lab import wanted as module
from pytest_kvmlab.lab.base_image import BaseImage
from pytest_kvmlab.lab.hosts import Host
from pytest_kvmlab.lab.wanted import Asked, Wanted, template_key, why_not_cloned
from pytest_kvmlab.plan.guest import Accel, BootSource
from pytest_kvmlab.spec.guest import GuestKeys
from pytest_kvmlab.spec.network import LabNetwork
from pytest_kvmlab.spec.resolved import resolve_guest
from pytest_kvmlab.spec.validation import validate


def host(*, own: bool = True, qemu: str = "7.2.22", libvirt: str = "9.0.0") -> Host:
    """As much of a host as is looked at here."""
    connection = SimpleNamespace(versions=lambda: Versions(libvirt=libvirt, qemu=qemu))
    choice = SimpleNamespace(private=own)
    return cast("Host", SimpleNamespace(own=own, connection=connection, choice=choice))


def asked(name: str = "web", *, identity: str = "0" * 64, **written: object) -> Asked:
    keys = validate(GuestKeys, {"image": "micro", **written}, source="here")
    spec = resolve_guest(keys, source="here", networks=["campus"])
    return Asked(name, spec, BaseImage(identity, keys, BootSource(), None), "here", ExitStack())


def one(name: str = "web", *, identity: str = "0" * 64, **written: object) -> Wanted:
    return Wanted([asked(name, identity=identity, **written)], {}, {}, {}, "here", None)


def in_lab(name: str = "web", **network: object) -> Wanted:
    networks = {"campus": validate(LabNetwork, {"mode": "nat", **network}, source="here")}
    return replace(one(name), networks=networks)


def key(wanted: Wanted, on: Host | None = None, accel: Accel = "tcg") -> str:
    return template_key(wanted, on or host(), accel)


def test_the_same_guests_have_the_same_template() -> None:
    assert key(one()) == key(one())


@pytest.mark.parametrize(
    "other",
    [
        one(identity="1" * 64),
        one(memory="300MiB"),
        one(vcpus=2),
        one(cpu="qemu64"),
        one(firmware="uefi"),
        one(cmdline="quiet"),
        one(ready="true"),
        one(disks=[{"size": "1MiB"}]),
        one(networks=[]),
        one(login={"channel": "serial"}),
        in_lab(),
        replace(one(), guests=[asked(), asked("db")]),
    ],
)
def test_what_a_guest_is_counts(other: Wanted) -> None:
    assert key(other) != key(one())


def test_a_password_counts_though_nobody_sees_it() -> None:
    one_word, other = (one(login={"channel": "serial", "password": word}) for word in ("a", "b"))
    assert key(one_word) != key(other)
    assert one_word.kind != other.kind
    assert key(one_word) == key(one(login={"channel": "serial", "password": "a"}))


def test_what_it_runs_on_counts() -> None:
    keys = [
        key(one()),
        key(one(), host(qemu="8.0.0")),
        key(one(), host(libvirt="10.0.0")),
        key(one(), accel="kvm"),
    ]
    assert len(set(keys)) == 4


@pytest.mark.parametrize("name", ["version", "server_identity"])
def test_the_plugin_that_talked_to_it_counts(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    before = key(one())
    monkeypatch.setattr(module, name, lambda *_: "another")
    assert key(one()) != before


def test_a_network_counts() -> None:
    assert len({key(in_lab()), key(in_lab(mode="isolated")), key(in_lab(subnet="10.7.0.0/24"))}) == 3


def test_a_name_counts_only_where_others_know_it() -> None:
    assert key(one("web")) == key(one("db"))
    assert key(in_lab("web")) != key(in_lab("db"))
    assert key(one("web", seed=True)) != key(one("db", seed=True))


def test_a_file_that_changes_counts(tmp_path: Path) -> None:
    disc = tmp_path / "disc.iso"
    disc.write_bytes(b"one")
    before = key(one(cdrom=str(disc)))
    assert key(one(cdrom=str(disc))) == before
    disc.write_bytes(b"two!")
    assert key(one(cdrom=str(disc))) != before


def test_another_qemu_of_the_same_version_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    qemu, stamp = tmp_path / "qemu", module._stamp
    qemu.touch()
    monkeypatch.setattr(module, "_stamp", lambda file: stamp(qemu if "qemu" in str(file) else file))
    before = key(one())
    os.utime(qemu, (1, 1))
    assert key(one()) != before


def test_what_is_plugged_in_later_does_not_count() -> None:
    plugged = one(usb=["0a5e:2110"])
    assert key(plugged.without_usb) == key(one())
    assert [wish.guest for wish in plugged.dongles] == ["web"]


@pytest.mark.parametrize(
    ("wanted", "on", "why"),
    [
        (one(), host(), ""),
        (in_lab(), host(), ""),
        (in_lab(mode="bridge", bridge="br0", simulated=True), host(), ""),
        (one(), host(own=False), "its libvirt is not the run's own"),
        (in_lab(mode="bridge", bridge="br0"), host(), "it is on a real LAN"),
        (one(machine="microvm"), host(), "a microvm does not tell"),
        (one(tpm=True), host(), "the state of a TPM"),
        (one(login={"channel": "none"}), host(), "nobody can ask it"),
        (one(usb=["0a5e:2110"]), host(), "it boots with its USB devices"),
        (one(usb=["0a5e:2110"], hotplug=True), host(), ""),
        (one(usb=[{"virtual": "licence", "id": "0a5e:2110", "plugged": False}]), host(), ""),
    ],
)
def test_why_a_guest_is_not_cloned(wanted: Wanted, on: Host, why: str) -> None:
    assert why_not_cloned(wanted, on).startswith(why)
    assert bool(why_not_cloned(wanted, on)) == bool(why)
