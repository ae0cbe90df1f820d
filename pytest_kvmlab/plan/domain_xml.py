"""A plan as libvirt's domain XML (https://libvirt.org/formatdomain.html). It prints; it decides nothing.

What is left out is as deliberate as what is there: no balloon (nobody shrinks these guests), no probing of
disk formats (each file of a chain is named with its own), no option ROM on a network card that does not boot.
"""

from collections.abc import Callable, Iterator
from xml.etree import ElementTree as ET
from xml.etree.ElementTree import Element, SubElement

from pytest_kvmlab.errors import ConfigError
from pytest_kvmlab.plan.guest import CdromPlan, DiskFile, DiskPlan, GuestPlan, NicPlan
from pytest_kvmlab.spec.characters import printable

METADATA_NAMESPACE = "urn:pytest-kvmlab:1"
"""The namespace of the element that says whose a domain is."""

_QEMU_NAMESPACE = "http://libvirt.org/schemas/domain/qemu/1.0"


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
    domain.append(_qemu_capabilities())
    _refuse_unprintable(domain)
    ET.register_namespace("qemu", _QEMU_NAMESPACE)
    ET.register_namespace("kvmlab", METADATA_NAMESPACE)
    ET.indent(domain)
    return ET.tostring(domain, encoding="unicode") + "\n"


def _element(tag: str, text: str | None = None, /, **attributes: str) -> Element:
    element = Element(tag, attributes)
    element.text = text
    return element


def _nested(element: Element, *children: Element) -> Element:
    element.extend(children)
    return element


def _identity(plan: GuestPlan) -> Iterator[Element]:
    yield _element("name", plan.name)
    yield _element("uuid", str(plan.uuid))
    if plan.machine != "microvm":
        # QEMU has no generation ID device for a microvm.
        yield _element("genid")
    yield _element("title", f"{plan.guest} of run {plan.run_id}")
    mine = _element(f"{{{METADATA_NAMESPACE}}}guest", run=plan.run_id, name=plan.guest, owner=plan.owner)
    yield _nested(_element("metadata"), mine)


def _size(plan: GuestPlan) -> Iterator[Element]:
    yield _element("memory", str(plan.memory), unit="b")
    yield _element("vcpu", str(plan.vcpus))


def _boot(plan: GuestPlan) -> Iterator[Element]:
    os = _nested(_element("os"), _element("type", "hvm", arch="x86_64", machine=plan.machine))
    if plan.uefi:
        os.append(_element("loader", str(plan.uefi.code), readonly="yes", type="pflash"))
        os.append(_element("nvram", str(plan.uefi.vars), template=str(plan.uefi.vars_template)))
    if plan.boot:
        os.append(_element("kernel", str(plan.boot.kernel)))
        if plan.boot.initrd:
            os.append(_element("initrd", str(plan.boot.initrd)))
        if plan.boot.cmdline:
            os.append(_element("cmdline", plan.boot.cmdline))
    yield os


def _fw_cfg(plan: GuestPlan) -> Iterator[Element]:
    """The content stays in a file: on QEMU's command line every user of the machine could read it."""
    if plan.fw_cfg:
        entries = [_element("entry", name=name, file=str(path)) for name, path in plan.fw_cfg]
        yield _nested(_element("sysinfo", type="fwcfg"), *entries)


def _features(plan: GuestPlan) -> Iterator[Element]:
    """Without ACPI, Debian's kernels find no virtio device on a microvm."""
    features = _nested(_element("features"), _element("acpi"))
    if plan.machine != "microvm":
        features.append(_element("apic"))
    yield features


def _cpu(plan: GuestPlan) -> Iterator[Element]:
    cpu = _element("cpu", mode=plan.cpu.mode)
    if plan.cpu.model:
        cpu.set("match", "exact")
        cpu.append(_element("model", plan.cpu.model, fallback="forbid"))
    yield cpu


def _lifecycle(plan: GuestPlan) -> Iterator[Element]:
    yield _element("clock", offset=plan.clock)
    yield _element("on_poweroff", "destroy")
    yield _element("on_reboot", "restart")
    # Stopped, but still there: its screen can be looked at, and its console is not overwritten by a new boot.
    yield _element("on_crash", "preserve")


_PARTS: tuple[Callable[[GuestPlan], Iterator[Element]], ...] = (
    _identity,
    _size,
    _boot,
    _fw_cfg,
    _features,
    _cpu,
    _lifecycle,
)


def _devices(plan: GuestPlan) -> Element:
    devices = _element("devices")
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


def _placed(element: Element, plan: GuestPlan) -> Element:
    """A microvm has no PCI bus to put virtio devices on (QEMU docs/system/i386/microvm.rst)."""
    if plan.machine == "microvm":
        SubElement(element, "address", type="virtio-mmio")
    return element


def _disk(disk: DiskPlan, plan: GuestPlan) -> Element:
    # A throw-away disk needs no flush; what the guest discards or zeroes need not stay in the overlay.
    driver = _element(
        "driver",
        name="qemu",
        type=disk.file.format,
        cache="unsafe",
        discard="unmap",
        detect_zeroes="unmap",
    )
    element = _nested(_element("disk", type="file", device="disk"), driver)
    element.extend(_chain(disk.file))
    element.append(_element("target", dev=disk.target, bus=disk.bus))
    _boot_order(element, disk.boot_order)
    return _placed(element, plan)


def _chain(file: DiskFile) -> Iterator[Element]:
    """Every file with its format, closed by an empty backingStore: so libvirt opens none of them to look."""
    yield _element("source", file=str(file.path))
    backing = _element("backingStore")
    if file.backing:
        backing.set("type", "file")
        backing.append(_element("format", type=file.backing.format))
        backing.extend(_chain(file.backing))
    yield backing


def _cdrom(cdrom: CdromPlan) -> Element:
    element = _nested(
        _element("disk", type="file", device="cdrom"),
        _element("driver", name="qemu", type="raw"),
        _element("source", file=str(cdrom.file)),
        _element("target", dev=cdrom.target, bus=cdrom.bus),
        _element("readonly"),
    )
    _boot_order(element, cdrom.boot_order)
    return element


def _boot_order(element: Element, order: int | None) -> None:
    if order is not None:
        element.append(_element("boot", order=str(order)))


def _nic(nic: NicPlan, plan: GuestPlan) -> Element:
    element = _nested(
        _element("interface", type="user"),
        _element("mac", address=nic.mac),
        _element("model", type=nic.model),
        _element("alias", name=nic.alias),
    )
    _boot_order(element, nic.boot_order)
    if nic.boot_order is None and plan.machine != "microvm":
        element.append(_element("rom", enabled="no"))
    return _placed(element, plan)


def _controllers(plan: GuestPlan) -> Iterator[Element]:
    yield _placed(_element("controller", type="virtio-serial", index="0"), plan)
    yield _element("controller", type="usb", model="none" if plan.machine == "microvm" else "qemu-xhci")


def _channels(plan: GuestPlan) -> Iterator[Element]:
    source = _element("source", mode="bind", path=str(plan.serial_socket))
    log = _element("log", file=str(plan.serial_log), append="on")
    yield _nested(_element("serial", type="unix"), source, log)
    agent = _element("source", mode="bind", path=str(plan.agent_socket))
    target = _element("target", type="virtio", name="org.qemu.guest_agent.0")
    yield _nested(_element("channel", type="unix"), agent, target)


def _screen(plan: GuestPlan) -> Iterator[Element]:
    if plan.vnc_socket:
        listen = _element("listen", type="socket", socket=str(plan.vnc_socket))
        yield _nested(_element("graphics", type="vnc"), listen)
    yield _nested(_element("video"), _element("model", type=plan.video))


def _sound(plan: GuestPlan) -> Iterator[Element]:
    """The card is the guest's; what it plays goes nowhere."""
    if plan.sound:
        yield _element("sound", model=plan.sound)
        yield _element("audio", id="1", type="none")


def _small_devices(plan: GuestPlan) -> Iterator[Element]:
    yield _element("memballoon", model="none")
    if plan.rng:
        source = _element("backend", "/dev/urandom", model="random")
        yield _placed(_nested(_element("rng", model="virtio"), source), plan)
    if plan.tpm:
        yield _nested(_element("tpm", model="tpm-crb"), _element("backend", type="emulator", version="2.0"))
    if plan.machine != "microvm":
        # Through this ISA port a guest's kernel tells libvirt that it panicked.
        yield _element("panic", model="isa")


def _qemu_capabilities() -> Element:
    """Without this, libvirt asks QEMU about every CPU feature at start: 0.28 s instead of 0.05 s."""
    capabilities = Element(f"{{{_QEMU_NAMESPACE}}}capabilities")
    SubElement(capabilities, f"{{{_QEMU_NAMESPACE}}}del", capability="cpu-unavailable-features")
    return capabilities


def _refuse_unprintable(domain: Element) -> None:
    for element in domain.iter():
        for text in (element.text or "", *element.attrib.values()):
            if not printable(text):
                raise ConfigError(
                    f"{element.tag}: {text!r} has a character that libvirt's XML cannot hold",
                    "rename the file, or write it without control characters",
                )
