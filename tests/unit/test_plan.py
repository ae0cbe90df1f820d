from dataclasses import replace
from pathlib import Path

import pytest

from pytest_kvmlab.errors import ConfigError, HostError
from pytest_kvmlab.plan.guest import (
    BootSource,
    CdromPlan,
    CpuPlan,
    DiskFile,
    GuestPlan,
    KernelPlan,
    RunFacts,
    UefiFiles,
    plan_guest,
)
from pytest_kvmlab.plan.names import derived_mac, domain_name, domain_uuid, new_run_id
from pytest_kvmlab.spec.guest import GuestKeys
from pytest_kvmlab.spec.resolved import GuestSpec, resolve_guest
from pytest_kvmlab.spec.validation import validate

DISK = BootSource(
    disk=DiskFile(Path("/run/web.qcow2"), "qcow2", DiskFile(Path("/store/base.qcow2"), "qcow2"))
)
KERNEL = BootSource(kernel=Path("/store/vmlinux"), initrd=Path("/store/initrd"), cmdline="console=ttyS0")
RUN = RunFacts(run_id="0123abcd", owner="42:1000", guest="web", accel="tcg", folder=Path("/run/web"))


def spec(**written: object) -> GuestSpec:
    return resolve_guest(validate(GuestKeys, {"image": "micro", **written}, source="here"), source="here")


def plan(source: BootSource = DISK, run: RunFacts = RUN, **written: object) -> GuestPlan:
    return plan_guest(spec(**written), source, run)


def test_run_ids_are_short_and_never_the_same() -> None:
    ids = {new_run_id() for _ in range(200)}
    assert len(ids) == 200
    assert all(len(name) == 8 and int(name, 16) >= 0 for name in ids)


def test_a_domain_is_named_after_run_and_guest() -> None:
    assert domain_name("0123abcd", "web") == "kvl-0123abcd-web"
    assert len(domain_name("0123abcd", "a" * 31)) == 44


@pytest.mark.parametrize("guest", ["", "Web", "../x", "a b", "a" * 32, "web\n", "1st"])
def test_a_domain_is_never_named_after_something_odd(guest: str) -> None:
    with pytest.raises(ConfigError, match="lower-case letter"):
        domain_name("0123abcd", guest)


def test_a_domain_keeps_its_uuid_and_shares_it_with_none() -> None:
    assert domain_uuid("kvl-a-web") == domain_uuid("kvl-a-web")
    assert domain_uuid("kvl-a-web") != domain_uuid("kvl-b-web")


def test_mac_addresses_follow_from_run_guest_and_card() -> None:
    cards = [(run, guest, index) for run in ("a", "b") for guest in ("web", "db") for index in (0, 1)]
    macs = [derived_mac(*card) for card in cards]
    assert len(set(macs)) == len(cards)
    assert all(mac.startswith("52:54:00:") and len(mac) == 17 for mac in macs)
    assert macs == [derived_mac(*card) for card in cards]


def test_a_card_keeps_the_mac_address_that_it_was_given() -> None:
    cards = plan(networks=[{"mac": "52:54:00:12:34:68"}, {}]).nics
    assert [card.mac for card in cards] == ["52:54:00:12:34:68", derived_mac("0123abcd", "web", 1)]
    assert [card.netdev for card in cards] == ["hostua-nic0", "hostua-nic1"]


def test_what_the_firmware_is_told_to_boot_goes_before_the_images_kernel() -> None:
    assert plan(KERNEL, boot=["disk"]).boot is None
    assert plan(KERNEL, boot=["disk"], kernel="/my/vmlinuz").boot is not None


def test_the_disc_of_an_image_is_in_the_drive_unless_the_guest_has_its_own() -> None:
    disc = BootSource(cdrom=Path("/store/cdrom.iso"))
    own = plan(disc, cdrom="/iso/mine.iso").cdrom
    assert plan(disc).cdrom == CdromPlan(Path("/store/cdrom.iso"), "sata", "sda", 2)
    assert own is not None
    assert own.file == Path("/iso/mine.iso")


def test_a_boot_from_a_disc_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match="there is none in image"):
        plan(DISK, boot=["cdrom"])


def test_disks_are_named_in_their_series_and_only_the_first_is_booted() -> None:
    run = replace(RUN, disks=(DiskFile(Path("/run/1.raw"), "raw"), DiskFile(Path("/run/2.raw"), "raw")))
    made = plan(
        run=run,
        disks=[{"size": "1GiB"}, {"size": "1GiB", "bus": "sata"}],
        cdrom="/iso",
        boot=["cdrom", "disk"],
    )
    assert [(disk.target, disk.boot_order) for disk in made.disks] == [
        ("vda", 2),
        ("vdb", None),
        ("sda", None),
    ]
    assert made.cdrom is not None
    assert (made.cdrom.target, made.cdrom.boot_order) == ("sdb", 1)


def test_the_seed_is_the_last_disk_is_only_read_and_is_never_booted() -> None:
    seeded = replace(RUN, disks=(DiskFile(Path("/run/1.raw"), "raw"),), seed=Path("/run/seed.img"))
    *_, seed = plan(run=seeded, disks=[{"size": "1GiB"}]).disks
    assert (seed.file, seed.target, seed.read_only) == (DiskFile(Path("/run/seed.img"), "raw"), "vdc", True)
    (alone,) = plan(BootSource(cdrom=Path("/store/cdrom.iso")), replace(seeded, disks=())).disks
    assert (alone.target, alone.boot_order) == ("vda", None)


def test_a_microvm_has_no_drive_for_the_disc_of_an_image() -> None:
    disc = BootSource(kernel=Path("/store/vmlinux"), cdrom=Path("/store/cdrom.iso"))
    with pytest.raises(ConfigError, match="microvm' has no CD-ROM drive"):
        plan(disc, replace(RUN, accel="kvm"), machine="microvm")


def test_each_extra_disk_needs_its_file() -> None:
    with pytest.raises(ValueError, match="zip"):
        plan(disks=[{"size": "1GiB"}])


def test_the_image_brings_kernel_and_initrd_and_command_line() -> None:
    made = plan(KERNEL, replace(RUN, accel="kvm")).boot
    assert made == KernelPlan(Path("/store/vmlinux"), Path("/store/initrd"), "console=ttyS0")


def test_a_kernel_does_not_count_the_ticks_of_an_emulated_timer() -> None:
    boot = plan(KERNEL, replace(RUN, accel="tcg")).boot
    assert boot
    assert boot.cmdline == "console=ttyS0 no_timer_check"


def test_another_kernel_does_not_get_the_initrd_of_the_image() -> None:
    made = plan(KERNEL, kernel="/my/vmlinuz").boot
    assert made == KernelPlan(Path("/my/vmlinuz"), None, "console=ttyS0 no_timer_check")


def test_the_guest_may_change_initrd_and_command_line_only() -> None:
    made = plan(KERNEL, initrd="/my/initrd", cmdline="quiet").boot
    assert made == KernelPlan(Path("/store/vmlinux"), Path("/my/initrd"), "quiet")


@pytest.mark.parametrize("key", ["cmdline", "initrd"])
def test_a_command_line_without_a_kernel_is_refused(key: str) -> None:
    with pytest.raises(ConfigError, match="without a kernel"):
        plan_guest(spec(**{key: "/my/initrd"}), DISK, RUN)


def test_a_microvm_without_a_kernel_is_refused() -> None:
    with pytest.raises(ConfigError, match="boots a kernel only"):
        plan(run=replace(RUN, accel="kvm"), machine="microvm")


def test_a_microvm_is_not_emulated() -> None:
    with pytest.raises(ConfigError, match="machine 'microvm' needs KVM"):
        plan(KERNEL, machine="microvm")


@pytest.mark.parametrize(
    ("cpu", "accel", "expected"),
    [
        (None, "tcg", CpuPlan("maximum")),
        (None, "kvm", CpuPlan("host-passthrough")),
        ("host", "kvm", CpuPlan("host-passthrough")),
        ("max", "kvm", CpuPlan("maximum")),
        ("qemu64", "tcg", CpuPlan("custom", "qemu64")),
    ],
)
def test_the_processor_follows_from_key_and_accelerator(
    cpu: str | None, accel: str, expected: CpuPlan
) -> None:
    run = replace(RUN, accel="kvm" if accel == "kvm" else "tcg")
    assert plan(run=run, cpu=cpu).cpu == expected


def test_the_processor_of_the_host_needs_kvm() -> None:
    with pytest.raises(ConfigError, match="needs KVM"):
        plan(cpu="host")


def test_uefi_gets_variables_of_its_own() -> None:
    made = plan(
        run=replace(RUN, uefi=UefiFiles(Path("/ovmf/code"), Path("/ovmf/vars"))), firmware="uefi"
    ).uefi
    assert made is not None
    assert (made.vars_template, made.vars) == (Path("/ovmf/vars"), Path("/run/web/uefi-vars.fd"))


def test_uefi_on_a_machine_without_it_is_refused() -> None:
    with pytest.raises(HostError, match="this machine has none"):
        plan(firmware="uefi")


def test_a_guest_without_a_display_has_no_screen_socket() -> None:
    assert plan(video="none").vnc_socket is None
    assert plan().vnc_socket == Path("/run/web/vnc.sock")


def test_a_path_that_a_socket_cannot_have_is_refused() -> None:
    longest = Path("/") / ("ä" * 47)
    assert len(bytes(plan(run=replace(RUN, folder=longest)).serial_socket)) == 107
    with pytest.raises(ConfigError, match="has 108 bytes, 107 are possible"):
        plan(run=replace(RUN, folder=longest.with_name(longest.name + "a")))


@pytest.mark.parametrize("name", ["a,file=b", "a&b", "a<b", "a>b", "a'b", 'a"b'])
def test_a_file_for_the_guest_whose_path_libvirt_would_not_quote_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="the path of a file for the guest"):
        plan(run=replace(RUN, fw_cfg={"opt/org.kvmlab/host_key": Path("/run") / name}))


def test_a_tpm_is_refused_where_qemu_would_put_the_initrd_over_the_acpi_tables() -> None:
    with pytest.raises(ConfigError, match="a TPM does not go with a kernel and an initrd"):
        plan(KERNEL, tpm=True)
    assert plan(KERNEL, kernel="/my/kernel", tpm=True).tpm
    assert plan(DISK, tpm=True).tpm
