"""The golden files are what libvirt gets; `REGENERATE_GOLDEN=1` in the environment writes them anew."""

import random
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from pytest_kvmlab.errors import ConfigError
from pytest_kvmlab.plan.domain_xml import domain_xml
from pytest_kvmlab.plan.elements import METADATA_NAMESPACE
from pytest_kvmlab.plan.guest import (
    BootSource,
    Card,
    DiskFile,
    GuestPlan,
    MemoryFile,
    RunFacts,
    StreamWire,
    TapWire,
    UefiFiles,
    plan_guest,
)
from pytest_kvmlab.spec.guest import GuestKeys
from pytest_kvmlab.spec.resolved import resolve_guest
from pytest_kvmlab.spec.validation import validate
from tests.unit.golden_files import GOLDEN, golden, valid

SCHEMA = "domain.rng"

OVERLAY = DiskFile(Path("/run/web/disk.qcow2"), "qcow2", DiskFile(Path("/store/base.raw"), "raw"))
DISK = BootSource(disk=OVERLAY)
KERNEL = BootSource(OVERLAY, Path("/store/vmlinux"), Path("/store/initrd"), "console=ttyS0 panic=-1")
RUN = RunFacts(
    run_id="0123abcd",
    owner="42:1000",
    guest="web",
    accel="tcg",
    folder=Path("/run/web"),
    fw_cfg={"opt/org.kvmlab/host_key": Path("/run/web/host_key")},
    uefi=UefiFiles(Path("/usr/share/OVMF/OVMF_CODE_4M.fd"), Path("/usr/share/OVMF/OVMF_VARS_4M.fd")),
)
BLANK = DiskFile(Path("/run/web/disk-1.qcow2"), "qcow2")


def plan(source: BootSource = KERNEL, run: RunFacts = RUN, **written: object) -> GuestPlan:
    keys = validate(GuestKeys, {"image": "micro", **written}, source="here")
    return plan_guest(resolve_guest(keys, source="here"), source, run)


CASES = {
    "q35": plan(),
    "pc": plan(
        machine="pc", cdrom="/iso/tools.iso", networks=[{"model": "rtl8139"}], sound="ac97", video="cirrus"
    ),
    "microvm": plan(run=replace(RUN, accel="kvm"), machine="microvm"),
    "disk": plan(DISK, replace(RUN, fw_cfg={})),
    "kvm": plan(DISK, replace(RUN, accel="kvm"), vcpus=4, memory="2GiB"),
    "uefi": plan(DISK, firmware="uefi", tpm=True, cdrom="/iso/install.iso", boot=["cdrom", "disk"]),
    "many": plan(
        DISK,
        replace(RUN, disks=(BLANK, DiskFile(Path("/data/x.raw"), "raw"))),
        disks=[{"size": "1GiB"}, {"file": "/data/x.raw", "format": "raw", "bus": "sata"}],
        networks=[{"mac": "52:54:00:12:34:68"}, {"model": "e1000e"}],
        boot=["network", "disk"],
        sound="ich9",
        cpu="qemu64",
    ),
    "disc": plan(BootSource(cdrom=Path("/store/cdrom.iso")), bios_serial=True),
    "seed": plan(DISK, replace(RUN, seed=Path("/run/web/seed.img")), seed=True),
    "shared": plan(run=replace(RUN, qemu_user="+1000:+1000")),
    "wired": plan(
        DISK,
        replace(
            RUN,
            cards=(
                Card(),
                Card(TapWire("kt0123abcd11111"), "52:54:00:00:00:01"),
                Card(TapWire("kt0123abcdabcde")),
                Card(),
                Card(StreamWire(45678), "52:54:00:00:00:02"),
            ),
        ),
        networks=[{}, {"model": "e1000"}, {"mac": "52:54:00:12:34:68"}, {"model": "rtl8139"}, {}],
    ),
    "template": replace(plan(), memory_file=MemoryFile(Path("/dev/shm/kvl-0/a,b-0"), writes=True)),
    "clone": replace(
        plan(), memory_file=MemoryFile(Path("/dev/shm/kvl-0/a,b-0"), writes=False), incoming=True
    ),
    "bare": plan(networks=[], video="none", rng=False, clock="localtime"),
}


def parsed(xml: str) -> ET.Element:
    return ET.fromstring(xml)  # noqa: S314  the tested code printed it


@pytest.mark.parametrize("name", CASES)
def test_a_plan_prints_as_its_golden_file(name: str) -> None:
    printed = domain_xml(CASES[name])
    assert printed == golden(GOLDEN / f"{name}.xml", printed)


def test_every_golden_file_has_its_plan() -> None:
    # Those of USB devices are their own test's.
    own = {file.stem for file in GOLDEN.glob("*.xml") if not file.stem.startswith("usb-")}
    assert own == set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_libvirt_accepts_what_is_printed(name: str) -> None:
    assert valid(domain_xml(CASES[name]), SCHEMA)


def test_libvirt_would_notice_a_mistake() -> None:
    assert not valid(
        domain_xml(CASES["q35"]).replace("<vcpu>", "<vcpus>").replace("</vcpu>", "</vcpus>"), SCHEMA
    )


@pytest.mark.parametrize(
    "hostile",
    [
        "a,file=/etc/shadow",
        "]]></cmdline><kernel>/etc/shadow</kernel>",
        "\" quoted ' & <b> &amp; &#10;",
        "<!-- --> <?x?>",
        "ünï\u2028cödé 😀",
    ],
)
def test_hostile_text_stays_text(hostile: str) -> None:
    odd = Path(f"/store/{hostile.replace('/', '_')}")
    source = BootSource(DiskFile(odd, "qcow2", DiskFile(odd, "raw")), odd, odd, hostile)
    printed = domain_xml(plan(source, cdrom=str(odd)))
    domain = parsed(printed)
    assert [domain.findtext(f"os/{tag}") for tag in ("kernel", "initrd")] == [str(odd)] * 2
    assert domain.findtext("os/cmdline") == f"{hostile} no_timer_check"
    assert [source.get("file") for source in domain.iterfind("devices/disk//source")] == [str(odd)] * 3
    assert valid(printed, SCHEMA)


def test_random_text_stays_text_or_is_refused() -> None:
    dice = random.Random(1)  # noqa: S311  the same texts in every run
    for _ in range(300):
        text = "".join(chr(dice.choice((dice.randrange(256), dice.randrange(0x11_0000)))) for _ in range(12))
        try:
            printed = domain_xml(plan(replace(KERNEL, cmdline=text)))
        except ConfigError:
            continue
        assert parsed(printed).findtext("os/cmdline") == f"{text} no_timer_check"


@pytest.mark.parametrize("character", ["\x00", "\n", "\r", "\t", "\x1b", "\x7f", "\x85", "\ud800", "\ufffe"])
def test_what_xml_cannot_hold_is_refused(character: str) -> None:
    with pytest.raises(ConfigError, match="cmdline"):
        domain_xml(plan(replace(KERNEL, cmdline=f"quiet{character}")))
    with pytest.raises(ConfigError, match="source"):
        domain_xml(plan(replace(KERNEL, disk=DiskFile(Path(f"/store/a{character}"), "raw"))))


def test_a_chain_names_every_format_so_that_nothing_is_probed() -> None:
    three = DiskFile(Path("/c"), "qcow2", DiskFile(Path("/b"), "qcow2", DiskFile(Path("/a"), "raw")))
    disk = parsed(domain_xml(plan(BootSource(three)))).find("devices/disk")
    assert disk is not None
    assert [source.get("file") for source in disk.iter("source")] == ["/c", "/b", "/a"]
    assert [named.get("type") for named in disk.iter("format")] == ["qcow2", "raw"]
    assert [(end.attrib, len(end)) for end in disk.iter("backingStore")][-1] == ({}, 0)


def test_the_domain_says_whose_it_is() -> None:
    mine = parsed(domain_xml(CASES["q35"])).find(f"metadata/{{{METADATA_NAMESPACE}}}guest")
    assert mine is not None
    assert mine.attrib == {"run": "0123abcd", "name": "web", "owner": "42:1000"}
