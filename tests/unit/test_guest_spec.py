from pathlib import Path

import pytest

from pytest_kvmlab.errors import ConfigError
from pytest_kvmlab.spec.access import GeneratedHostKey, LearnedHostKey, PinnedHostKey
from pytest_kvmlab.spec.guest import GuestKeys, anchored, merge
from pytest_kvmlab.spec.quantity import MIB
from pytest_kvmlab.spec.readiness import CommandReady, ConsoleReady, PortReady, UnitReady
from pytest_kvmlab.spec.resolved import GuestSpec, resolve_guest
from pytest_kvmlab.spec.validation import validate

PUBLIC_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIE7VJK5gTKZbF0dD0ltRzTmBz1ZvzBq0YVlQ5mUu0T0a"


def keys(**written: object) -> GuestKeys:
    return validate(GuestKeys, written, source="here")


def spec(**written: object) -> GuestSpec:
    return resolve_guest(keys(**{"image": "micro", **written}), source="guest 'web'")


def refusal(**written: object) -> str:
    with pytest.raises(ConfigError) as caught:
        spec(**written)
    return str(caught.value)


def test_a_guest_that_says_only_its_image_has_defaults() -> None:
    plain = spec()
    assert (plain.vcpus, plain.memory, plain.machine, plain.firmware) == (1, 256 * MIB, "q35", "bios")
    assert [(nic.mode, nic.model, nic.mac) for nic in plain.networks] == [("user", "virtio", None)]
    assert (plain.clock, plain.rng, plain.tpm, plain.video, plain.boot) == (
        "utc",
        True,
        False,
        "vga",
        (),
    )
    assert (plain.login.user, plain.login.channel, plain.host_key) == ("root", "ssh", GeneratedHostKey())
    assert plain.boot_timeout == 60


def test_a_guest_without_an_image_is_refused() -> None:
    with pytest.raises(ConfigError, match="guest 'web': no image is named"):
        resolve_guest(keys(vcpus=1), source="guest 'web'")


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ({"memroy": "1GiB"}, "memroy: unknown key (did you mean 'memory'?)"),
        ({"usb": "0a5e:2110"}, "usb: should be a list"),
        ({"seed": "yes"}, "seed: "),
        ({"after": ["db"]}, "after: unknown key"),
        ({"machine": "q53"}, "did you mean 'q35'?"),
        ({"vcpus": 0}, "vcpus: "),
        ({"vcpus": "2"}, "vcpus: "),
        ({"vcpus": True}, "vcpus: "),
        ({"vcpus": 256}, "vcpus: "),
        ({"memory": 512}, "memory: write a size with its unit"),
        ({"rng": "yes"}, "rng: "),
        ({"tpm": "1.2"}, "tpm: "),
        ({"boot": ["disk", "disk"]}, "boot: names a device twice"),
        ({"networks": [{"mode": "nat"}]}, "networks[0].mode: "),
        ({"networks": ["campus"]}, "networks[0].name: no network 'campus' is made for this guest"),
        ({"networks": ["Campus"]}, "networks[0]: a network's name is a lower-case letter"),
        ({"networks": [{"name": "campus", "mode": "user"}]}, "networks[0]: has a name and a mode"),
        ({"networks": [{"address": "10.77.0.10"}]}, "networks[0]: has an address, but no network"),
        ({"networks": [{"mac": "53:54:00:12:34:56"}]}, "multicast"),
        ({"networks": [{"mac": "00:00:00:00:00:00"}]}, "networks[0].mac: should be a MAC address"),
        ({"networks": [{"mac": "52-54-00-12-34-56"}]}, "networks[0].mac: should be a MAC address"),
        ({"networks": [{"mac": "52:54:00:12:34:56\n"}]}, "networks[0].mac: should be a MAC address"),
        ({"disks": [{}]}, "either a size (a blank disk) or a file"),
        ({"disks": [{"size": "1GiB", "file": "x", "format": "raw"}]}, "either a size"),
        ({"disks": [{"file": "x.raw"}]}, "a file needs its format"),
        ({"login": {"password": "geheim", "key": "id"}}, "a password and a key"),
        ({"image": "../../etc"}, "image: "),
        ({"image": "micro\n"}, "image: "),
        ({"cpu": "host,+vmx"}, "cpu: "),
        ({"cmdline": "quiet\nsplash"}, "cmdline: has a line break"),
        ({"cmdline": ""}, "cmdline: should be a text"),
        ({"kernel": "vmlinuz\x00"}, "kernel: has a line break, another control character"),
        ({"cdrom": 5}, "cdrom: should be a text"),
        ({"boot_timeout": 0}, "boot_timeout: "),
        ({"boot_timeout": "90s"}, "boot_timeout: "),
        ({"boot_timeout": 90.5}, "boot_timeout: "),
    ],
)
def test_a_wrong_key_is_named_with_what_is_right(written: dict[str, object], said: str) -> None:
    assert said in refusal(**written)


def test_a_wrong_password_is_never_shown() -> None:
    assert "geheim" not in refusal(login={"password": "geheim", "key": "id"})
    assert "geheim" not in repr(spec(login={"password": "geheim"}))
    told = refusal(login={"password": "geheim\nroot:geheim"})
    assert "login.password: has a line break" in told
    assert "geheim" not in told


@pytest.mark.parametrize(
    ("written", "ready"),
    [
        ("unit:ssh.service", UnitReady("ssh.service")),
        ("port:80", PortReady(80)),
        ("console:login: $", ConsoleReady("login: $")),
        ("test -e /run/ready", CommandReady("test -e /run/ready")),
        ("curl http://localhost/", CommandReady("curl http://localhost/")),
    ],
)
def test_readiness_is_read_by_its_kind(written: str, ready: object) -> None:
    assert spec(ready=written).ready == ready


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("prot:80", "did you mean 'port'?"),
        ("port:0", "1 to 65535"),
        ("port:65536", "1 to 65535"),
        ("port:٨٠", "1 to 65535"),
        ("console:(", "not a regular expression"),
        ("unit:a b", "name of a systemd unit"),
        ("true\nfalse", "line break"),
    ],
)
def test_a_readiness_that_cannot_come_true_is_refused(written: str, said: str) -> None:
    assert said in refusal(ready=written)


@pytest.mark.parametrize(
    ("written", "key"),
    [
        ("generated", GeneratedHostKey()),
        ("learn", LearnedHostKey()),
        (f"{PUBLIC_KEY} root@web", PinnedHostKey(PUBLIC_KEY)),
    ],
)
def test_a_host_key_is_generated_learned_or_pinned(written: str, key: object) -> None:
    assert spec(host_key=written).host_key == key


@pytest.mark.parametrize(
    "written",
    [
        "lern",
        "ssh-ed25519",
        "ssh-ed25519 AAAA",
        "ssh-ed25519 !",
        f"ssh-rsa {PUBLIC_KEY.split()[1]}",
        "ssh-dss AAAA",
    ],
)
def test_a_damaged_host_key_is_refused(written: str) -> None:
    assert "'generated', 'learn' or a public key line" in refusal(host_key=written)


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ({"cdrom": "a.iso"}, "no CD-ROM drive"),
        ({"firmware": "uefi"}, "no UEFI firmware"),
        ({"networks": [{"model": "e1000"}]}, "only virtio network cards"),
        ({"disks": [{"size": "1GiB", "bus": "sata"}]}, "only virtio disks"),
        ({"sound": "ich9"}, "no sound card"),
        ({"tpm": True}, "no TPM"),
        ({"video": "vga"}, "no display"),
        ({"boot": ["network"]}, "no network boot"),
        ({"bios_serial": True}, "no BIOS"),
        ({"networks": [{}] * 6}, "places for 8 virtio devices"),
        ({"networks": [{}] * 5, "seed": True}, "places for 8 virtio devices"),
    ],
)
def test_a_microvm_refuses_what_it_cannot_have(written: dict[str, object], said: str) -> None:
    told = refusal(machine="microvm", **written)
    assert told.startswith("guest 'web': machine 'microvm' has ")
    assert said in told


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ({"disks": [{"size": "1GiB", "bus": "ide"}]}, "needs machine 'pc'"),
        (
            {"machine": "pc", "cdrom": "a.iso", "disks": [{"size": "1GiB", "bus": "ide"}] * 4},
            "places for 4 drives",
        ),
        ({"boot": ["network"], "networks": []}, "has no network card"),
        ({"networks": [], "login": {"channel": "ssh"}}, "login is over SSH"),
        ({"firmware": "uefi", "bios_serial": True}, "bios_serial needs firmware 'bios'"),
        ({"seed": True, "login": {"user": "LAB\\ada"}}, "whose name no account can have"),
        ({"seed": True, "login": {"user": "-r"}}, "whose name no account can have"),
    ],
)
def test_keys_that_exclude_each_other_are_refused(written: dict[str, object], said: str) -> None:
    assert said in refusal(**written)


def test_a_microvm_is_headless_and_full_to_its_last_place() -> None:
    full = spec(machine="microvm", networks=[{}] * 5)
    assert (full.video, len(full.networks)) == ("none", 5)


def test_a_guest_without_network_is_reached_over_its_serial_line() -> None:
    assert spec(networks=[]).login.channel == "serial"


def test_a_card_in_a_network_of_the_lab_says_its_name() -> None:
    card = {"name": "campus", "address": "10.77.0.10"}
    asked = keys(image="micro", networks=["campus", card])
    cards = resolve_guest(asked, source="here", networks=["campus"]).networks
    assert [(card.name, str(card.address)) for card in cards] == [
        ("campus", "None"),
        ("campus", "10.77.0.10"),
    ]
    with pytest.raises(ConfigError, match=r"networks\[0\]\.name: .* \(did you mean 'campsu'\?\)"):
        resolve_guest(asked, source="here", networks=["campsu"])


def test_a_mac_address_is_kept_in_lower_case() -> None:
    assert spec(networks=[{"mac": "52:54:00:AB:CD:EF"}]).networks[0].mac == "52:54:00:ab:cd:ef"


def test_the_nearest_layer_that_has_a_key_wins() -> None:
    merged = merge(keys(vcpus=4), keys(vcpus=2, memory="1GiB"), keys(image="micro", memory="64MiB"))
    assert (merged.vcpus, merged.memory, merged.image) == (4, 1024 * MIB, "micro")


def test_none_in_a_near_layer_takes_the_default_again() -> None:
    merged = merge(keys(kernel=None), keys(image="micro", kernel="vmlinuz"))
    assert resolve_guest(merged, source="here").kernel is None


def test_a_list_of_a_near_layer_replaces_the_far_one() -> None:
    assert merge(keys(networks=[]), keys(networks=[{}, {}])).networks == ()


def test_a_layer_says_nothing_about_keys_that_it_does_not_have() -> None:
    assert merge(keys(), keys()).model_fields_set == set()


def test_relative_paths_are_seen_from_their_file() -> None:
    layer = keys(
        kernel="vmlinuz",
        initrd="/boot/initrd",
        login={"key": "id"},
        disks=[{"file": "d.raw", "format": "raw"}, {"size": "1GiB"}],
    )
    placed = anchored(layer, Path("/labs"))
    assert (placed.kernel, placed.initrd) == (Path("/labs/vmlinuz"), Path("/boot/initrd"))
    assert placed.login is not None
    assert placed.login.key == Path("/labs/id")
    assert [disk.file for disk in placed.disks or ()] == [Path("/labs/d.raw"), None]
    assert placed.model_fields_set == layer.model_fields_set
