"""The key `usb` of a guest: dongles of this machine, and virtual ones."""

import re
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    StrictBool,
    WithJsonSchema,
    model_validator,
)
from pydantic.config import JsonDict

from pytest_kvmlab.spec.names import SHORT_NAME, check_short_name
from pytest_kvmlab.spec.text import Line

MOST_DONGLES = 15
"""As many ports as QEMU's xHCI controller has (hw/usb/hcd-xhci-pci.c, properties `p2` and `p3`)."""

_ID = "[0-9a-fA-F]{4}:[0-9a-fA-F]{4}"
# Bus, root port, and up to five hubs between (USB 2.0 specification, 4.1.1: seven tiers at most).
_PORT = r"[1-9][0-9]{0,3}-[1-9][0-9]{0,2}(\.[1-9][0-9]{0,2}){0,5}"
# A string descriptor has 255 bytes, of which two are its head (USB 2.0 specification, 9.6.7).
_LONGEST_SERIAL = 126
_FORMS = (
    "write VENDOR:PRODUCT as lsusb does, four hexadecimal digits each: '0a5e:2110', with its port "
    "'0a5e:2110@1-1.4' or its serial number '0a5e:2110#SERIAL' where several are plugged in"
)


def parse_id(written: str) -> str:
    """Read the identity of a kind of USB device.

    Args:
        written: `VENDOR:PRODUCT`, four hexadecimal digits each, as lsusb(8) prints them.

    Returns:
        The same in small letters.

    Raises:
        ValueError: it is something else; the message says what is wrong, and what was probably meant.
    """
    if not re.fullmatch(_ID, written):
        raise ValueError(f"{_what_is_wrong(written)}: {_FORMS}")
    if written.startswith("0000:"):
        raise ValueError(f"no vendor has the number 0000: {_FORMS}")
    return written.lower()


def _what_is_wrong(written: str) -> str:
    numbers = [number.strip().lower().removeprefix("0x") for number in written.split(":")]
    if len(numbers) == 1:
        return "has a vendor, but no product"
    if len(numbers) > 2 or not all(re.fullmatch("[0-9a-f]+", number) for number in numbers):
        return "is not two hexadecimal numbers"
    if max(map(len, numbers)) > 4:
        return "has a number of more than four digits"
    return f"did you mean '{':'.join(number.zfill(4) for number in numbers)}'?"


def _port(written: str) -> str:
    if not re.fullmatch(_PORT, written):
        raise ValueError("is not a USB port such as '1-1.4': `kvmlab usb list` shows them")
    return written


def _serial(written: str) -> str:
    if len(written) > _LONGEST_SERIAL:
        raise ValueError(f"is longer than a serial number can be: {_LONGEST_SERIAL} characters")
    return written


UsbId = Annotated[str, AfterValidator(parse_id), WithJsonSchema({"type": "string", "pattern": f"^{_ID}$"})]
UsbPort = Annotated[str, AfterValidator(_port), WithJsonSchema({"type": "string", "pattern": f"^{_PORT}$"})]
UsbSerial = Annotated[Line, AfterValidator(_serial)]
VirtualModel = Literal["licence"]
VirtualName = Annotated[
    str,
    AfterValidator(lambda name: check_short_name(name, "a virtual dongle")),
    WithJsonSchema({"type": "string", "pattern": f"^{SHORT_NAME}$"}),
]


def _or_as_text(schema: JsonDict) -> None:
    table = schema.copy()
    schema.clear()
    schema["anyOf"] = [{"type": "string", "pattern": f"^{_ID}(@{_PORT})?(#.+)?$"}, table]


class UsbKeys(BaseModel):
    """One USB device of a guest: a dongle of this machine, or with `virtual` one that QEMU is told of.

    The text `ID@PORT#SERIAL`, whose port and serial number may be left out, stands for a dongle of this
    machine.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", json_schema_extra=_or_as_text)

    id: UsbId
    port: UsbPort | None = None
    serial: UsbSerial | None = None
    virtual: VirtualModel | None = None
    name: VirtualName | None = None
    plugged: StrictBool = True

    @model_validator(mode="before")
    @classmethod
    def _as_text(cls, written: object) -> object:
        if not isinstance(written, str):
            return written
        place, has_serial, serial = written.partition("#")
        kind, has_port, port = place.partition("@")
        # Read here, so that the message names the whole text and not a key that nobody wrote.
        return {
            "id": parse_id(kind),
            **({"port": _port(port)} if has_port else {}),
            **({"serial": serial} if has_serial else {}),
        }

    @model_validator(mode="after")
    def _real_or_virtual(self) -> Self:
        if self.virtual is not None and self.port is not None:
            raise ValueError("is virtual, so that it has no port of this machine")
        if self.virtual is None and (self.name or not self.plugged):
            raise ValueError("is a dongle of this machine: only a virtual one has a name or may be unplugged")
        return self

    @property
    def called(self) -> str:
        """What a test calls it: by the name of a virtual one, or of its model; else as one writes it."""
        return self.name or self.virtual or self.text

    @property
    def text(self) -> str:
        """The dongle as one writes it."""
        port = f"@{self.port}" if self.port else ""
        return f"{self.id}{port}{f'#{self.serial}' if self.serial else ''}"

    @property
    def place(self) -> str:
        """What no two guests can have: its port where that is said, else the dongle as one writes it."""
        return self.port or self.text


def _without_repeats(dongles: tuple[UsbKeys, ...]) -> tuple[UsbKeys, ...]:
    names = [dongle.called if dongle.virtual else dongle.place for dongle in dongles]
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise ValueError(f"has {twice[0]} twice: say which is which, by port or serial number, or by a name")
    return dongles


UsbList = Annotated[tuple[UsbKeys, ...], AfterValidator(_without_repeats)]
