"""Sizes as people write them: `512MiB`, `1.5GiB`."""

import re
from decimal import Decimal
from typing import Annotated

from pydantic import BeforeValidator, WithJsonSchema

KIB = 2**10
MIB = 2**20
GIB = 2**30
TIB = 2**40
PIB = 2**50

_UNITS = {"KiB": KIB, "MiB": MIB, "GiB": GIB, "TiB": TIB}
_SHAPE = r"[0-9]{1,16}(\.[0-9]{1,16})?[KMGT]iB"
_EXAMPLE = "write a size with its unit, such as '512MiB' or '1.5GiB'"


def parse_size(written: object) -> int:
    """Read a size with a binary unit (IEC 80000-13: 1 KiB is 1024 bytes).

    Decimal units are refused: `512MB` means two different sizes to two readers.

    Args:
        written: a number directly followed by `KiB`, `MiB`, `GiB` or `TiB`.

    Returns:
        The size in bytes, at least 1 and at most 1 PiB.

    Raises:
        ValueError: it is not such a text, not a whole number of bytes, zero, or more than 1 PiB.
    """
    if not isinstance(written, str) or not re.fullmatch(_SHAPE, written):
        raise ValueError(_EXAMPLE)
    size = Decimal(written[:-3]) * _UNITS[written[-3:]]
    if size != int(size):
        raise ValueError(f"is not a whole number of bytes; {_EXAMPLE}")
    if not 0 < size <= PIB:
        raise ValueError(f"is out of range (more than nothing, at most 1024TiB); {_EXAMPLE}")
    return int(size)


def parse_memory(written: object) -> int:
    """Read the memory of a guest.

    Args:
        written: a size, see `parse_size`.

    Returns:
        The memory in bytes: a whole number of MiB, because QEMU rounds anything else without saying so.

    Raises:
        ValueError: it is not a size, or not a whole number of MiB.
    """
    size = parse_size(written)
    if size % MIB:
        raise ValueError(f"is not a whole number of MiB; the nearest is '{max(1, round(size / MIB))}MiB'")
    return size


def _schema(*examples: str) -> WithJsonSchema:
    return WithJsonSchema({"type": "string", "pattern": f"^{_SHAPE}$", "examples": list(examples)})


Size = Annotated[int, BeforeValidator(parse_size), _schema("64MiB", "10GiB")]
Memory = Annotated[int, BeforeValidator(parse_memory), _schema("512MiB", "2GiB")]
