"""The types of keys that are addresses: of network cards, of hosts, of networks."""

import re
from ipaddress import IPv4Address, IPv4Network
from typing import Annotated

from pydantic import AfterValidator, PlainSerializer, PlainValidator, WithJsonSchema

_MAC = r"[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}"
# ASCII digits only, and no leading zero, which some readers take for octal (RFC 6943 section 3.1.1).
_OCTET = r"(0|[1-9][0-9]{0,2})"
_ADDRESS = rf"{_OCTET}(\.{_OCTET}){{3}}"
_SUBNET = rf"{_ADDRESS}/[0-9]{{1,2}}"
# linux/if.h: IFNAMSIZ is 16 with the zero; net/core/dev.c, dev_valid_name(): no slash, colon or space.
_LONGEST_INTERFACE = 15
_INTERFACE = r"[A-Za-z0-9][A-Za-z0-9_.-]*"

LARGEST_SUBNET, SMALLEST_SUBNET = 16, 30


def parse_mac(written: str) -> str:
    """Read the MAC address of a network card.

    Args:
        written: six octets in hexadecimal digits, with colons.

    Returns:
        The same address in lower case.

    Raises:
        ValueError: it is none, all zero, or the address of a group (IEEE 802: the lowest bit of the first
            octet), which no card may have.
    """
    mac = written.lower()
    if not re.fullmatch(_MAC, mac) or mac == "00:00:00:00:00:00":
        raise ValueError("should be a MAC address such as '52:54:00:12:34:68'")
    if int(mac[:2], 16) & 1:
        raise ValueError("is a multicast MAC address; the first octet must be even, such as '52:…'")
    return mac


def parse_address(written: object) -> IPv4Address:
    """Read the address of one card.

    Args:
        written: an IPv4 address in dotted decimal.

    Returns:
        The address.

    Raises:
        ValueError: it is none, or one that no card can have (RFC 6890).
    """
    try:
        address = IPv4Address(_shaped(_ADDRESS, written))
    except ValueError:
        raise ValueError("should be an IPv4 address such as '10.77.0.10'") from None
    if _special(address):
        raise ValueError("is an address that no network card can have")
    return address


def parse_subnet(written: object) -> IPv4Network:
    """Read the addresses of a network.

    Args:
        written: an IPv4 network in CIDR notation (RFC 4632).

    Returns:
        The network, at most 65,534 and at least two addresses large.

    Raises:
        ValueError: it is none, has bits set behind its prefix, is too large or too small, or is not for
            ordinary hosts (RFC 6890).
    """
    try:
        subnet = IPv4Network(_shaped(_SUBNET, written), strict=False)
    except ValueError:
        raise ValueError("should be an IPv4 network such as '10.77.0.0/24'") from None
    if str(subnet) != written:
        raise ValueError(f"is an address in a network; the network itself is '{subnet}'")
    if not LARGEST_SUBNET <= subnet.prefixlen <= SMALLEST_SUBNET:
        raise ValueError(f"should have a prefix from /{LARGEST_SUBNET} to /{SMALLEST_SUBNET}")
    if _special(subnet.network_address):
        raise ValueError("is a network that no card can be in")
    return subnet


def parse_interface(written: str) -> str:
    """Read the name of a network interface of Linux.

    Args:
        written: the name, such as `br0`.

    Returns:
        The same name.

    Raises:
        ValueError: it has other characters than letters, digits and `_.-`, or more than 15 of them.
    """
    if not re.fullmatch(_INTERFACE, written):
        raise ValueError("should be the name of a bridge, such as 'br0'")
    if len(written) > _LONGEST_INTERFACE:
        raise ValueError(f"is longer than {_LONGEST_INTERFACE} characters, the most that Linux allows")
    return written


def _shaped(pattern: str, written: object) -> str:
    # ipaddress would also take numbers and netmasks
    if not isinstance(written, str) or not re.fullmatch(pattern, written):
        raise ValueError(written)
    return written


def _special(address: IPv4Address) -> bool:
    return (
        address.is_multicast
        or address.is_loopback
        or address.is_link_local
        or address.is_reserved
        or address in IPv4Network("0.0.0.0/8")
    )


def _as_text(address: IPv4Address | IPv4Network) -> str:
    """What `str` does; the oldest pydantic wants a function with a signature."""
    return str(address)


MacAddress = Annotated[
    str, AfterValidator(parse_mac), WithJsonSchema({"type": "string", "pattern": f"^{_MAC}$"})
]
Address = Annotated[
    IPv4Address,
    PlainValidator(parse_address),
    PlainSerializer(_as_text),
    WithJsonSchema({"type": "string", "pattern": f"^{_ADDRESS}$", "examples": ["10.77.0.10"]}),
]
Subnet = Annotated[
    IPv4Network,
    PlainValidator(parse_subnet),
    PlainSerializer(_as_text),
    WithJsonSchema({"type": "string", "pattern": f"^{_SUBNET}$", "examples": ["10.77.0.0/24"]}),
]
Interface = Annotated[
    str,
    AfterValidator(parse_interface),
    WithJsonSchema({"type": "string", "pattern": f"^{_INTERFACE}$", "maxLength": _LONGEST_INTERFACE}),
]
