"""How to get into a guest, and how to know that it is the right one."""

import base64
import binascii
import struct
from dataclasses import dataclass
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    PlainValidator,
    SecretStr,
    WithJsonSchema,
    model_validator,
)

from pytest_kvmlab.spec.characters import one_line, printable
from pytest_kvmlab.spec.text import FilePath, Line

Channel = Literal["ssh", "serial", "none"]


def _typeable(password: SecretStr) -> SecretStr:
    if not printable(password.get_secret_value()):
        raise ValueError("has a line break or another control character, which no login can be told")
    return password


Password = Annotated[SecretStr, AfterValidator(_typeable)]


class LoginKeys(BaseModel):
    """The table `login` of a guest.

    Neither `password` nor `key` means the run's own key, which the image takes from QEMU's fw_cfg, or from a
    seed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    user: Line = "root"
    password: Password | None = None
    key: FilePath | None = None
    channel: Channel | None = None

    @model_validator(mode="after")
    def _one_proof(self) -> Self:
        if self.password is not None and self.key is not None:
            raise ValueError("has a password and a key: give one of them")
        return self


@dataclass(frozen=True)
class GeneratedHostKey:
    """The run makes a host key and gives it to the guest: `generated`."""


@dataclass(frozen=True)
class LearnedHostKey:
    """The first key that the guest shows is believed: `learn`."""


@dataclass(frozen=True)
class PinnedHostKey:
    """The guest shows this key: its line in OpenSSH's format, without the comment."""

    line: str


HostKey = GeneratedHostKey | LearnedHostKey | PinnedHostKey

_KEY_TYPES = ("ssh-ed25519", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521", "ssh-rsa")
_FORMS = "write 'generated', 'learn' or a public key line, such as 'ssh-ed25519 AAAA…'"


def parse_host_key(written: object) -> HostKey:
    """Read how a guest's SSH host key is known.

    Args:
        written: `generated`, `learn`, or a public key line as in `/etc/ssh/ssh_host_ed25519_key.pub`.

    Returns:
        The expectation.

    Raises:
        ValueError: it is none of them, or the line is damaged (RFC 4253 section 6.6: the encoded key begins
            with the name of its type).
    """
    text = one_line(written)
    if text == "generated":
        return GeneratedHostKey()
    if text == "learn":
        return LearnedHostKey()
    return PinnedHostKey(_public_key_line(text))


def _public_key_line(text: str) -> str:
    kind, encoded, *_ = [*text.split(), "", ""]
    if kind not in _KEY_TYPES:
        raise ValueError(_FORMS)
    try:
        blob = base64.b64decode(encoded, validate=True)
    except binascii.Error:
        blob = b""
    name = struct.pack(">I", len(kind)) + kind.encode()
    if not blob.startswith(name) or len(blob) == len(name):
        raise ValueError(f"is a damaged public key line: {_FORMS}")
    return f"{kind} {encoded}"


HostKeyKey = Annotated[
    HostKey, PlainValidator(parse_host_key), WithJsonSchema({"type": "string", "description": _FORMS})
]
