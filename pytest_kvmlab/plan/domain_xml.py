"""A plan as libvirt's domain XML (https://libvirt.org/formatdomain.html). It prints; it decides nothing.

What is left out is as deliberate as what is there: no balloon (nobody shrinks these guests), no probing of
disk formats (each file of a chain is named with its own), no option ROM on a network card that does not boot.
"""

from collections.abc import Callable, Iterator
from xml.etree.ElementTree import Element, SubElement

from pytest_kvmlab.plan.elements import QEMU_NAMESPACE, document, element, nested, owned
from pytest_kvmlab.plan.guest import (
    CdromPlan,
    DiskFile,
    DiskPlan,
    GuestPlan,
    NicPlan,
    StreamWire,
    TapWire,
    UserWire,
    Wire,
)
from pytest_kvmlab.spec.usb import MOST_DONGLES


def domain_xml(plan: GuestPlan) -> str:
    """Print a plan.

    Args:
        plan: what was decided.

    Returns:
        The XML of a transient domain, always the same for the same plan.

    Raises:
        ConfigError: a path or a text has a character that XML cannot hold.
    """
    domain = Element("domain", {"type": "kvm" if plan.accel == "kvm" else "qemu"})
    for part in _PARTS:
        domain.extend(part(plan))
    domain.append(_devices(plan))
    domain.extend(_command_line(plan))
    domain.append(_qemu_capabilities())
    return document(domain)


def _identity(plan: GuestPlan) -> Iterator[Element]:
    yield element("name", plan.name)
    yield element("uuid", str(plan.uuid))
    if plan.machine != "microvm":
        # QEMU has no generation ID device for a microvm.
        yield element("genid")
    yield element("title", f"{plan.guest} of run {plan.run_id}")
    yield owned("guest", run=plan.run_id, name=plan.guest, owner=plan.owner)


def _size(plan: GuestPlan) -> Iterator[Element]:
    yield element("memory", str(plan.memory), unit="b")
    yield element("vcpu", str(plan.vcpus))


def _boot(plan: GuestPlan) -> Iterator[Element]:
    os = nested(element("os"), element("type", "hvm", arch="x86_64", machine=plan.machine))
    if plan.uefi:
        os.append(element("loader", str(plan.uefi.code), readonly="yes", type="pflash"))
        os.append(element("nvram", str(plan.uefi.vars), template=str(plan.uefi.vars_template)))
    if plan.bios_serial:
        os.append(element("bios", useserial="yes"))
    if plan.boot:
        os.append(element("kernel", str(plan.boot.kernel)))
        if plan.boot.initrd:
            os.append(element("initrd", str(plan.boot.initrd)))
        if plan.boot.cmdline:
            os.append(element("cmdline", plan.boot.cmdline))
    yield os


def _fw_cfg(plan: GuestPlan) -> Iterator[Element]:
    """The content stays in a file: on QEMU's command line every user of the machine could read it."""
    if plan.fw_cfg:
        entries = [element("entry", name=name, file=str(path)) for name, path in plan.fw_cfg]
        yield nested(element("sysinfo", type="fwcfg"), *entries)


def _features(plan: GuestPlan) -> Iterator[Element]:
    """Without ACPI, Debian's kernels find no virtio device on a microvm."""
    features = nested(element("features"), element("acpi"))
    if plan.machine != "microvm":
        features.append(element("apic"))
    yield features


def _cpu(plan: GuestPlan) -> Iterator[Element]:
    cpu = element("cpu", mode=plan.cpu.mode)
    if plan.cpu.model:
        cpu.set("match", "exact")
        cpu.append(element("model", plan.cpu.model, fallback="forbid"))
    yield cpu


def _lifecycle(plan: GuestPlan) -> Iterator[Element]:
    yield element("clock", offset=plan.clock)
    yield element("on_poweroff", "destroy")
    yield element("on_reboot", "restart")
    # Stopped, but still there: its screen can be looked at, and its console is not overwritten by a new boot.
    yield element("on_crash", "preserve")


def _confinement(plan: GuestPlan) -> Iterator[Element]:
    """Files keep their owners: to libvirt a base image of ours is like any other disk."""
    if plan.qemu_user:
        label = element("label", plan.qemu_user)
        yield nested(element("seclabel", type="static", model="dac", relabel="no"), label)


_PARTS: tuple[Callable[[GuestPlan], Iterator[Element]], ...] = (
    _identity,
    _size,
    _boot,
    _fw_cfg,
    _features,
    _cpu,
    _lifecycle,
    _confinement,
)


def _devices(plan: GuestPlan) -> Element:
    devices = element("devices")
    for disk in plan.disks:
        devices.append(_disk(disk, plan))
    if plan.cdrom:
        devices.append(_cdrom(plan.cdrom))
    for nic in plan.nics:
        devices.append(_nic(nic, plan))
    devices.extend(_controllers(plan))
    devices.extend(_channels(plan))
    devices.extend(_screen(plan))
    devices.extend(_sound(plan))
    devices.extend(_small_devices(plan))
    return devices


def _placed(device: Element, plan: GuestPlan) -> Element:
    """A microvm has no PCI bus to put virtio devices on (QEMU docs/system/i386/microvm.rst)."""
    if plan.machine == "microvm":
        SubElement(device, "address", type="virtio-mmio")
    return device


def _disk(disk: DiskPlan, plan: GuestPlan) -> Element:
    driver = element("driver", name="qemu", type=disk.file.format)
    if not disk.read_only:
        # A throw-away disk needs no flush; what the guest discards or zeroes need not stay in the overlay.
        driver.attrib |= {"cache": "unsafe", "discard": "unmap", "detect_zeroes": "unmap"}
    device = nested(element("disk", type="file", device="disk"), driver)
    device.extend(_chain(disk.file))
    device.append(element("target", dev=disk.target, bus=disk.bus))
    if disk.read_only:
        device.append(element("readonly"))
    _boot_order(device, disk.boot_order)
    return _placed(device, plan)


def _chain(file: DiskFile) -> Iterator[Element]:
    """Every file with its format, closed by an empty backingStore: so libvirt opens none of them to look."""
    yield element("source", **{"dev" if file.device else "file": str(file.path)})
    backing = element("backingStore")
    if file.backing:
        backing.set("type", "block" if file.backing.device else "file")
        backing.append(element("format", type=file.backing.format))
        backing.extend(_chain(file.backing))
    yield backing


def _cdrom(cdrom: CdromPlan) -> Element:
    device = nested(
        element("disk", type="file", device="cdrom"),
        element("driver", name="qemu", type="raw"),
        element("source", file=str(cdrom.file)),
        element("target", dev=cdrom.target, bus=cdrom.bus),
        element("readonly"),
    )
    _boot_order(device, cdrom.boot_order)
    return device


def _boot_order(device: Element, order: int | None) -> None:
    if order is not None:
        device.append(element("boot", order=str(order)))


def _nic(nic: NicPlan, plan: GuestPlan) -> Element:
    card = nested(
        _wired(nic.wire),
        element("mac", address=nic.mac),
        element("model", type=nic.model),
        element("alias", name=nic.alias),
    )
    _boot_order(card, nic.boot_order)
    if nic.boot_order is None and plan.machine != "microvm":
        card.append(element("rom", enabled="no"))
    return _placed(card, plan)


def _wired(wire: Wire) -> Element:
    match wire:
        case UserWire():
            return element("interface", type="user")
        case TapWire(device):
            target = element("target", dev=device, managed="no")
            return nested(element("interface", type="ethernet"), target)
        case StreamWire(port):
            source = element("source", address="127.0.0.1", port=str(port))
            return nested(element("interface", type="client"), source)


def _controllers(plan: GuestPlan) -> Iterator[Element]:
    yield _placed(element("controller", type="virtio-serial", index="0"), plan)
    if plan.machine == "microvm":
        yield element("controller", type="usb", model="none")
    else:
        yield element("controller", type="usb", model="qemu-xhci", ports=str(MOST_DONGLES))


def _channels(plan: GuestPlan) -> Iterator[Element]:
    yield _serial(plan)
    agent = element("source", mode="bind", path=str(plan.agent_socket))
    target = element("target", type="virtio", name="org.qemu.guest_agent.0")
    yield nested(element("channel", type="unix"), agent, target)


def _serial(plan: GuestPlan) -> Element:
    """What a libvirt of root's makes for our QEMU is root's: there QEMU connects to a socket of ours."""
    if plan.qemu_user:
        source = element("source", mode="connect", path=str(plan.serial_socket))
        return nested(element("serial", type="unix"), source)
    source = element("source", mode="bind", path=str(plan.serial_socket))
    log = element("log", file=str(plan.serial_log), append="on")
    return nested(element("serial", type="unix"), source, log)


def _screen(plan: GuestPlan) -> Iterator[Element]:
    if plan.vnc_socket:
        listen = element("listen", type="socket", socket=str(plan.vnc_socket))
        yield nested(element("graphics", type="vnc"), listen)
    yield nested(element("video"), element("model", type=plan.video))


def _sound(plan: GuestPlan) -> Iterator[Element]:
    """The card is the guest's; what it plays goes nowhere."""
    if plan.sound:
        yield element("sound", model=plan.sound)
        yield element("audio", id="1", type="none")


def _small_devices(plan: GuestPlan) -> Iterator[Element]:
    yield element("memballoon", model="none")
    if plan.rng:
        source = element("backend", "/dev/urandom", model="random")
        yield _placed(nested(element("rng", model="virtio"), source), plan)
    if plan.tpm:
        backend = element("backend", type="emulator", version="2.0")
        if plan.keeps_tpm:
            backend.set("persistent_state", "yes")
        yield nested(element("tpm", model="tpm-crb"), backend)
    if plan.machine != "microvm":
        # Through this ISA port a guest's kernel tells libvirt that it panicked.
        yield element("panic", model="isa")


def _command_line(plan: GuestPlan) -> Iterator[Element]:
    """What libvirt has no words for: a file of our choice as memory, and a start from another guest's state.

    QEMU takes a doubled comma for one that is part of a value (QEMU's invocation page, "-drive").
    """
    if plan.memory_file:
        path, share = str(plan.memory_file.path).replace(",", ",,"), plan.memory_file.writes
        memory = f"memory-backend-file,id=frozen,size={plan.memory},mem-path={path}"
        options = ["-object", f"{memory},share={'on' if share else 'off'}"]
        options += ["-machine", "memory-backend=frozen"]
        options += ["-incoming", "defer"] if plan.incoming else []
        yield nested(
            Element(f"{{{QEMU_NAMESPACE}}}commandline"),
            *(Element(f"{{{QEMU_NAMESPACE}}}arg", value=option) for option in options),
        )


def _qemu_capabilities() -> Element:
    """Without this, libvirt asks QEMU about every CPU feature at start: 0.28 s instead of 0.05 s."""
    capabilities = Element(f"{{{QEMU_NAMESPACE}}}capabilities")
    SubElement(capabilities, f"{{{QEMU_NAMESPACE}}}del", capability="cpu-unavailable-features")
    return capabilities
