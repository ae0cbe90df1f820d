"""What this machine can do: each check named, with its remedy. Used by `kvmlab doctor` and by errors."""

import os
import pwd
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pytest_kvmlab.drivers.libvirt import what_is_missing
from pytest_kvmlab.drivers.usb_devices import HostBus
from pytest_kvmlab.errors import HostError
from pytest_kvmlab.keeper.bridge_helper import find_obstacle
from pytest_kvmlab.keeper.daemon import find_daemon
from pytest_kvmlab.keeper.links import refuse_closed_tun
from pytest_kvmlab.keeper.namespaces import obstacle_to_namespaces
from pytest_kvmlab.keeper.run_folder import runs_root

_QEMU = "qemu-system-x86_64"
_DRIVER = "connection-driver/libvirt_driver_qemu.so"
_LIBRARIES = ("libvirt.so", "libvirt-qemu.so")
_LIBRARY_FOLDERS = ("/usr/lib/x86_64-linux-gnu/libvirt", "/usr/lib64/libvirt", "/usr/lib/libvirt")
_BUILD_PROGRAMS = {
    "apt-get": "apt", "dpkg-deb": "dpkg", "mke2fs": "e2fsprogs", "qemu-img": "qemu-utils",
}  # fmt: skip
_IMAGE_PROGRAMS = {
    "mmdebstrap": "mmdebstrap",
    "sfdisk": "fdisk",
    "mformat": "mtools",
    "grub-mkimage": "grub-common",
    "xorriso": "xorriso",
}
_NETWORK_PROGRAMS = {
    "ip": "iproute2",
    "bridge": "iproute2",
    "dnsmasq": "dnsmasq-base",
    "nsenter": "util-linux",
}
_UPLINK_PROGRAMS = {"slirp4netns": "slirp4netns", "nft": "nftables"}
_FAULT_PROGRAMS = {"tc": "iproute2", "nft": "nftables"}
_OVMF = ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_CODE.fd")
_UDEV_FILE = "/etc/udev/rules.d/70-kvmlab.rules"
_LEAST_ROOM = 2 * 1024**3


@dataclass(frozen=True)
class Finding:
    """What a check saw.

    Attributes:
        ok: whether it is as it should be.
        seen: what was found, in a few words.
        remedy: what to do if it is not.
        packages: the Debian packages that would mend it.
    """

    ok: bool
    seen: str
    remedy: str = ""
    packages: tuple[str, ...] = ()


@dataclass(frozen=True)
class Check:
    """One thing that can be looked at.

    Attributes:
        name: how errors and `kvmlab doctor` call it.
        purpose: what it is needed for.
        look: looks.
        optional: whether guests run without it.
    """

    name: str
    purpose: str
    look: Callable[[], Finding]
    optional: bool = False


def examine(checks: Iterable[Check]) -> Iterator[tuple[Check, Finding]]:
    """Look at one check after the other."""
    return ((check, check.look()) for check in checks)


def _missing(seen: str, *packages: str) -> Finding:
    return Finding(False, seen, f"apt install {' '.join(packages)}", packages)


def _emulator() -> Finding:
    found = shutil.which(_QEMU)
    return Finding(True, found) if found else _missing(f"{_QEMU} is not in PATH", "qemu-system-x86")


def _libvirt_daemon() -> Finding:
    try:
        return Finding(True, find_daemon(Path()).executable)
    except HostError as error:
        return _missing(error.message, "libvirt-daemon", "libvirt-daemon-driver-qemu")


def _libvirt_driver() -> Finding:
    for folder in _LIBRARY_FOLDERS:
        if (driver := Path(folder, _DRIVER)).exists():
            return Finding(True, str(driver))
    return _missing(f"no {_DRIVER} below {', '.join(_LIBRARY_FOLDERS)}", "libvirt-daemon-driver-qemu")


def _libvirt_python() -> Finding:
    if not (missing := what_is_missing()):
        return Finding(True, "importable")
    seen = f"the Python module libvirt cannot be imported: {missing}"
    if missing.startswith(_LIBRARIES):
        return _missing(seen, "libvirt0")
    build = ("gcc", "libc6-dev", "libvirt-dev", "pkg-config", "python3-dev")
    return Finding(False, seen, f"apt install {' '.join(build)}, then: pip install libvirt-python", build)


def _embedded_user() -> Finding:
    """The embedded driver of a root process refuses to load where libvirt's QEMU user is unknown."""
    if os.geteuid() != 0:
        return Finding(True, "not needed: this user is not root")
    try:
        return Finding(True, f"libvirt-qemu is user {pwd.getpwnam('libvirt-qemu').pw_uid}")
    except KeyError:
        return Finding(
            False,
            "there is no user libvirt-qemu, without which libvirt's embedded driver refuses to load as root",
            "useradd --system --user-group libvirt-qemu, or run as another user than root",
        )


def _namespaces() -> Finding:
    if obstacle := obstacle_to_namespaces():
        return Finding(
            False,
            obstacle,
            "run where namespaces are allowed (containers: --privileged), or with --kvm-host=embed",
        )
    return Finding(True, "mount, network and PID namespaces can be made")


def _build_programs() -> Finding:
    return _programs(_BUILD_PROGRAMS)


def _kvm_device() -> Finding:
    device = Path("/dev/kvm")
    if not device.exists():
        return Finding(
            False,
            f"there is no {device}",
            "switch virtualisation on in the firmware; modprobe kvm_intel or kvm_amd",
        )
    if not os.access(device, os.R_OK | os.W_OK):
        return Finding(
            False, f"{device} may not be opened by this user", f"adduser {os.environ.get('USER', 'USER')} kvm"
        )
    return Finding(
        True, f"{device} can be opened; whether a guest boots with it is proved at the start of a run"
    )


def _uefi_firmware() -> Finding:
    found = [path for path in _OVMF if Path(path).exists()]
    return Finding(True, found[0]) if found else _missing(f"none of {', '.join(_OVMF)}", "ovmf")


def _tpm_emulator() -> Finding:
    found = shutil.which("swtpm")
    return Finding(True, found) if found else _missing("swtpm is not in PATH", "swtpm", "swtpm-tools")


def _programs(programs: dict[str, str]) -> Finding:
    """Look for programs, some of which only administrators have in PATH; the packages are by their names."""
    search = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
    lacking = {name: package for name, package in programs.items() if not shutil.which(name, path=search)}
    if lacking:
        return _missing(f"not in PATH: {', '.join(lacking)}", *dict.fromkeys(lacking.values()))
    return Finding(True, ", ".join(programs))


def _network_programs() -> Finding:
    found = _programs(_NETWORK_PROGRAMS)
    try:
        refuse_closed_tun()
    except HostError as error:
        return Finding(False, error.message, error.hint) if found.ok else found
    return found


def _bridges(links: Path = Path("/sys/class/net")) -> Finding:
    """Whether this user may plug guests into the bridges of this machine."""
    bridges = sorted(entry.parent.name for entry in links.glob("*/bridge"))
    if not bridges or os.geteuid() == 0:
        return Finding(True, ", ".join(bridges) or "this machine has no bridge")
    if obstacle := next(filter(None, map(find_obstacle, bridges)), None):
        return Finding(False, obstacle.seen, obstacle.remedy)
    return Finding(True, f"qemu-bridge-helper may use {', '.join(bridges)}")


def usb_finding(bus: HostBus) -> Finding:
    """Whether this user may use the dongles of this machine.

    Args:
        bus: where they are plugged in.
    """
    if not bus.is_there:
        seen = f"this machine has no USB: there is no {bus.sysfs}"
        return Finding(False, seen, "virtual dongles need none; for real ones: modprobe xhci_pci")
    devices = [device for device in bus.devices() if not bus.needed(device)]
    locked = [device for device in devices if not bus.is_accessible(device)]
    if not locked:
        named = ", ".join(f"{device.id} in port {device.port}" for device in devices)
        return Finding(True, named or "nothing is plugged in that a guest could have")
    kinds = sorted({device.id for device in locked})
    return Finding(
        False,
        f"this user may not use {', '.join(f'{bus.node(device)} ({device.id})' for device in locked)}",
        f"as root, write into {_UDEV_FILE}, for the dongle that guests shall have: "
        f"{' or '.join(map(_udev_rule, kinds))}; then: udevadm control --reload; udevadm trigger; "
        f"adduser {os.environ.get('USER', 'USER')} kvm",
    )


def _udev_rule(kind: str) -> str:
    """Let the group of those who may use KVM use a device, too: udev(7)."""
    vendor, product = kind.split(":")
    device = f'ATTR{{idVendor}}=="{vendor}", ATTR{{idProduct}}=="{product}"'
    return f'SUBSYSTEM=="usb", {device}, MODE="0660", GROUP="kvm"'


def _run_folder() -> Finding:
    try:
        root = runs_root()
    except HostError as error:
        return Finding(False, error.message, error.hint)
    free = shutil.disk_usage(root).free
    if free < _LEAST_ROOM:
        return Finding(
            False, f"{root}: {free >> 20} MiB free", "make room, or point KVMLAB_RUNS at a larger disk"
        )
    return Finding(True, f"{root}: {free >> 30} GiB free")


QEMU = Check("qemu", "guests run in it", _emulator)
LIBVIRT_PYTHON = Check("libvirt-python", "lets Python talk to libvirt", _libvirt_python)
LIBVIRT = Check("libvirt", "starts the guests", _libvirt_daemon)
KVM = Check("kvm", "makes guests fast", _kvm_device, optional=True)
EMBEDDED_USER = Check(
    "embed", "--kvm-host=embed, where namespaces are forbidden", _embedded_user, optional=True
)
TPM = Check("tpm", "tpm = true", _tpm_emulator, optional=True)
NAMESPACES = Check("namespaces", "keep a run apart from the host, and end with it", _namespaces)
NETWORKS = Check("networks", "networks between guests", _network_programs, optional=True)

CHECKS = (
    QEMU,
    LIBVIRT,
    Check("libvirt driver", "lets libvirt start QEMU", _libvirt_driver),
    LIBVIRT_PYTHON,
    NAMESPACES,
    EMBEDDED_USER,
    Check("run folder", "holds disks and sockets of running guests", _run_folder),
    Check("build programs", "make images from Debian's packages", _build_programs),
    Check(
        "image programs",
        "make whole disks and installation discs",
        lambda: _programs(_IMAGE_PROGRAMS),
        optional=True,
    ),
    KVM,
    Check("uefi", 'firmware = "uefi"', _uefi_firmware, optional=True),
    TPM,
    NETWORKS,
    Check("bridge", 'mode = "bridge", on a bridge of this machine', _bridges, optional=True),
    Check("uplink", "uplink = true", lambda: _programs(_UPLINK_PROGRAMS), optional=True),
    Check(
        "faults", "bad lines, and guests that are parted", lambda: _programs(_FAULT_PROGRAMS), optional=True
    ),
    Check("usb", "dongles of this machine", lambda: usb_finding(HostBus()), optional=True),
)
NEEDED_FOR_PRIVATE_HOST = (LIBVIRT_PYTHON, QEMU, LIBVIRT, NAMESPACES)
NEEDED_FOR_EMBED = (LIBVIRT_PYTHON, QEMU, EMBEDDED_USER)
