"""Names that say whose a thing is, and addresses that two runs do not share by accident."""

import base64
import hashlib
import secrets
import uuid

from pytest_kvmlab.errors import ConfigError
from pytest_kvmlab.spec.names import check_guest_name

PREFIX = "kvl-"
"""Begins the name of every domain that a run makes."""

_NAMESPACE = uuid.UUID("6f1c1fa5-4b43-5a6f-9d0c-6d3b1c6a7e21")


def new_run_id() -> str:
    """Name a run: eight random hexadecimal digits."""
    return secrets.token_hex(4)


def domain_name(run_id: str, guest: str) -> str:
    """Name a libvirt domain.

    Args:
        run_id: the run that makes it.
        guest: the guest's name in the lab.

    Returns:
        At most 44 characters that need no quoting in a shell, a file name or XML.

    Raises:
        ConfigError: the guest's name is not one that a lab file allows.
    """
    try:
        return f"{PREFIX}{run_id}-{check_guest_name(guest)}"
    except ValueError as error:
        raise ConfigError(f"guest {guest!r}: {error}") from None


def domain_uuid(name: str) -> uuid.UUID:
    """Identify a domain: the same name always has the same UUID (RFC 4122, version 5)."""
    return uuid.uuid5(_NAMESPACE, name)


def bridge_name(run_id: str, instance: str, network: str) -> str:
    """Name the bridge of a network.

    Args:
        run_id: the run that makes it.
        instance: which use of the lab within the run it is for.
        network: the network's name in the lab.

    Returns:
        15 characters, the most that Linux allows (linux/if.h, IFNAMSIZ): `kb`, the run, and a hash.
    """
    return f"kb{run_id}{_five_characters(f'{instance}/{network}')}"


def tap_name(run_id: str, instance: str, guest: str, index: int) -> str:
    """Name the TAP device behind a network card.

    Args:
        run_id: the run that makes it.
        instance: which use of the lab within the run it is for.
        guest: the guest's name in the lab.
        index: which card of the guest, from 0.

    Returns:
        15 characters: `kt`, the run, and a hash.
    """
    return f"kt{run_id}{_five_characters(f'{instance}/{guest}/{index}')}"


def _five_characters(text: str) -> str:
    """25 bits of a hash, so that even a hundred names of one run hardly ever meet (1 in 6,700)."""
    return base64.b32encode(hashlib.sha256(text.encode()).digest()).decode()[:5].lower()


def derived_mac(run_id: str, guest: str, index: int) -> str:
    """Choose a MAC address for a network card that was given none.

    Args:
        run_id: the run.
        guest: the guest's name in the lab.
        index: which card of the guest, from 0.

    Returns:
        An address under 52:54:00, QEMU's locally administered prefix; the rest is a hash of the arguments.
    """
    digest = hashlib.sha256(f"{run_id}/{guest}/{index}".encode()).hexdigest()
    return ":".join(("52:54:00", digest[0:2], digest[2:4], digest[4:6]))
