"""`kvmlab usb`: the dongles of this machine, and who has them."""

from collections.abc import Sequence

import typer

from pytest_kvmlab.cli.output import AsJson, print_json, print_table
from pytest_kvmlab.drivers.usb_devices import HostDevice
from pytest_kvmlab.errors import UsbError
from pytest_kvmlab.lab.dongles import HostUsb

app = typer.Typer(help="Look at the USB devices of this machine.", no_args_is_help=True)


@app.callback()
def _usb() -> None:
    """Keep `list` a word of its own, although it is the only one."""


@app.command("list")
def list_(as_json: AsJson = False) -> None:
    """List what is plugged in, whether a guest could have it, and what to write in a lab file for it."""
    usb = HostUsb()
    if not usb.bus.is_there and not as_json:
        raise UsbError(
            "this machine has no USB: its kernel shows no devices",
            'virtual dongles need none: usb = [{ virtual = "licence", id = "0a5e:2110" }]',
            looked_at=[usb.bus.sysfs],
        )
    documents = devices_as_documents(usb)
    if as_json:
        print_json(documents)
    elif documents:
        print_table(("PORT", "ID", "NAME", "STATE", "IN A LAB FILE"), [_row(each) for each in documents])
    else:
        print("nothing is plugged in")


def devices_as_documents(usb: HostUsb) -> list[dict[str, str | None]]:
    """Describe all devices for a script.

    Args:
        usb: the dongles of this machine.

    Returns:
        For each device, in the order of the ports: `port`, `id`, `serial`, `name`, `state`, `why` and the
        `line` of a lab file that asks for it, which one that is refused has not.
    """
    plugged = usb.bus.devices()
    return [_document(usb, device, plugged) for device in plugged]


def _document(usb: HostUsb, device: HostDevice, plugged: Sequence[HostDevice]) -> dict[str, str | None]:
    state = usb.state(device)
    line = None if state.name == "refused" else f'usb = ["{_told_apart(device, plugged)}"]'
    return {
        "port": device.port,
        "id": device.id,
        "serial": device.serial,
        "name": device.label,
        "state": state.name,
        "why": state.why,
        "line": line,
    }


def _told_apart(device: HostDevice, plugged: Sequence[HostDevice]) -> str:
    """A device as one writes it: by its port where others look the same, as its serial number may, too."""
    alike = [other for other in plugged if other.id == device.id]
    return device.id if len(alike) == 1 else f"{device.id}@{device.port}"


def _row(document: dict[str, str | None]) -> tuple[str, ...]:
    name = f"{document['name']} #{document['serial']}" if document["serial"] else document["name"]
    state = f"{document['state']}: {document['why']}" if document["why"] else document["state"]
    return (document["port"] or "", document["id"] or "", name or "", state or "", document["line"] or "-")
