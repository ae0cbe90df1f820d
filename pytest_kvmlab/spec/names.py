"""What guests, networks, applications and images may be called, and what somebody probably meant."""

import re
from collections.abc import Iterable
from difflib import get_close_matches

# No hyphen at the end: guests are hosts by these names (RFC 1123 section 2.1).
SHORT_NAME = r"[a-z]([a-z0-9-]{0,29}[a-z0-9])?"
IMAGE_NAME = r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}"


def check_guest_name(name: str) -> str:
    """Accept the name of a guest: part of domain, file and host names, so kept to what all of them allow.

    Args:
        name: what was written.

    Returns:
        The same name.

    Raises:
        ValueError: it is not a lower-case letter followed by up to 30 letters, digits or hyphens.
    """
    return check_short_name(name, "a guest")


def check_short_name(name: str, kind: str) -> str:
    """Accept the name of a network or an application.

    Args:
        name: what was written.
        kind: what it names, for the message: `a network`.

    Returns:
        The same name.

    Raises:
        ValueError: it is not a lower-case letter followed by up to 30 letters, digits or hyphens.
    """
    if not re.fullmatch(SHORT_NAME, name):
        raise ValueError(
            f"{kind}'s name is a lower-case letter, then up to 30 of a-z, 0-9 and '-', the last no '-'"
        )
    return name


def check_image_name(name: str) -> str:
    """Accept the name of an image: a name of files in the store, so never a path.

    Args:
        name: what was written.

    Returns:
        The same name.

    Raises:
        ValueError: it is not a letter or digit followed by up to 63 letters, digits or `._+-`.
    """
    if not re.fullmatch(IMAGE_NAME, name):
        raise ValueError(
            "an image's name is a letter or digit, then up to 63 of these or '._+-'; never a path"
        )
    return name


def nearest(name: object, valid: Iterable[str]) -> str:
    """Say which valid name was probably meant.

    Args:
        name: what was written.
        valid: the names that exist.

    Returns:
        ` (did you mean 'x'?)`, or an empty string if nothing is near.
    """
    close = get_close_matches(str(name), list(valid), n=1)
    return f" (did you mean '{close[0]}'?)" if close else ""
