"""SSH keys of a run: made in memory, written only where only their owner may read."""

import base64
import binascii
import hashlib
import io
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import paramiko
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from pytest_kvmlab.errors import ConfigError


@dataclass(frozen=True)
class KeyPair:
    """A private key and its public line.

    Attributes:
        private: the private key as OpenSSH's text format; kept out of `repr`.
        public: `ssh-ed25519 AAAA… comment`, a line of `authorized_keys`.
    """

    private: str = field(repr=False)
    public: str

    @classmethod
    def of(cls, private: str) -> Self:
        """Take the public line from a private key.

        Args:
            private: a key of any type that paramiko knows, as text.

        Raises:
            ConfigError: the text is no private key, or one that asks for a passphrase.
        """
        key = load_private_key(private)
        return cls(private, f"{key.get_name()} {key.get_base64()}")

    def save(self, path: Path) -> None:
        """Write the private key to a new file that only this user can read.

        Raises:
            FileExistsError: there is something at `path` already.
        """
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(self.private)


def generate_key_pair(comment: str = "kvmlab") -> KeyPair:
    """Make an ed25519 key pair: the cheapest to make, to sign with and to check.

    Args:
        comment: ends the public line, so that a person can tell whose key it is.
    """
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    return KeyPair(private.decode("ascii"), f"{public.decode('ascii')} {comment}")


@dataclass(frozen=True)
class HostKey:
    """The public key by which a guest proves that it is that guest.

    Attributes:
        algorithm: its type, such as `ssh-ed25519`.
        blob: the key in SSH's wire format (RFC 4253, section 6.6).
    """

    algorithm: str
    blob: bytes

    @classmethod
    def parse(cls, line: str) -> Self:
        """Read `ssh-ed25519 AAAA… [comment]`, as it stands in a `.pub` file.

        Raises:
            ConfigError: the line is no public key.
        """
        algorithm, _, rest = line.strip().partition(" ")
        try:
            blob = base64.b64decode(rest.split()[0], validate=True)
        except (binascii.Error, ValueError, IndexError):
            blob = b""
        name = algorithm.encode()
        if not name or not blob.startswith(len(name).to_bytes(4) + name):
            raise ConfigError(
                f"not an SSH host key: {line.strip()[:60]!r}",
                "give the content of a .pub file: 'ssh-ed25519 AAAA…'",
            )
        return cls(algorithm, blob)

    @property
    def line(self) -> str:
        """The key as `parse` reads it."""
        return f"{self.algorithm} {base64.b64encode(self.blob).decode('ascii')}"

    @property
    def fingerprint(self) -> str:
        """`SHA256:…`, as `ssh-keygen -l` shows it."""
        digest = base64.b64encode(hashlib.sha256(self.blob).digest())
        return "SHA256:" + digest.decode("ascii").rstrip("=")


def load_private_key(text: str) -> paramiko.PKey:
    """Read a private key of any type that paramiko knows.

    Raises:
        ConfigError: the text is no private key, or one that asks for a passphrase.
    """
    kinds: tuple[type[paramiko.PKey], ...] = (paramiko.Ed25519Key, paramiko.ECDSAKey, paramiko.RSAKey)
    for kind in kinds:
        try:
            return kind.from_private_key(io.StringIO(text))
        except paramiko.PasswordRequiredException as error:
            raise ConfigError(
                "the private key asks for a passphrase", "use a key of its own for guests, without one"
            ) from error
        except (paramiko.SSHException, ValueError):
            continue
    raise ConfigError("not a private key", "give an ed25519, ECDSA or RSA key in OpenSSH or PEM format")
