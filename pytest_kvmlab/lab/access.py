"""The keys of one guest: by which it lets us in, and by which it proves that it is that guest."""

from dataclasses import dataclass
from pathlib import Path

from pytest_kvmlab.drivers.ssh import LEARN
from pytest_kvmlab.drivers.ssh_keys import KeyPair, generate_key_pair
from pytest_kvmlab.drivers.ssh_login import Login
from pytest_kvmlab.errors import ConfigError
from pytest_kvmlab.lab.seed import Seed
from pytest_kvmlab.spec.access import GeneratedHostKey, LearnedHostKey, PinnedHostKey
from pytest_kvmlab.spec.resolved import GuestSpec

IDENTITY = "id_ed25519"
"""The file of the private key that lets us in, in a guest's folder."""

LOGIN_FILES = IDENTITY, "authorized_keys"
"""That file, and the one of the guest's half."""


@dataclass(frozen=True)
class Access:
    """How we get into one guest, and what it is told for that.

    Attributes:
        login: whom we come as, with what.
        host_key: the key that its SSH server has to prove, or `learn`.
        host: the key that it is given for that, if it is.
        files: what it reads of all this, by the names in QEMU's firmware configuration.
    """

    login: Login
    host_key: str
    host: KeyPair | None
    files: dict[str, Path]

    @classmethod
    def of(cls, spec: GuestSpec, folder: Path) -> "Access":
        """Make the keys of a guest, where it is to take ours, and write what it reads of them.

        Keys that are in the folder already are taken: a clone has those of the guest that was frozen.
        They reach the guest as files of QEMU's firmware configuration (QEMU docs/specs/fw_cfg.rst): on a
        command line everyone on this machine could read them.
        """
        own = _key_pair(folder / IDENTITY, "kvmlab")
        files = {"opt/org.kvmlab/authorized_keys": _written(folder / LOGIN_FILES[1], own.public)}
        login = _login(spec, own)
        match spec.host_key:
            case GeneratedHostKey():
                host = _key_pair(folder / "host_key", "host")
                files["opt/org.kvmlab/host_key"] = folder / "host_key"
                return cls(login, host.public, host, files)
            case LearnedHostKey():
                return cls(login, LEARN, None, files)
            case PinnedHostKey(line):
                return cls(login, line, None, files)

    def seed(self, instance: str, hostname: str) -> Seed:
        """The same for a guest that asks cloud-init; a key that is pinned must not be replaced by it."""
        pinned = self.host is None and self.host_key != LEARN
        return Seed(instance, hostname, self.login, self.host, keep_host_keys=pinned)


def _login(spec: GuestSpec, own: KeyPair) -> Login:
    if spec.login.password is not None:
        return Login(spec.login.user, password=spec.login.password.get_secret_value())
    if spec.login.key is not None:
        return Login(spec.login.user, private_key=_read_key(spec.login.key))
    return Login(spec.login.user, private_key=own.private)


def _read_key(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"the login's key cannot be read: {error}", "name a private key", looked_at=[path]
        ) from error


def _written(path: Path, line: str) -> Path:
    if not path.exists():
        path.write_text(f"{line}\n")
    return path


def _key_pair(path: Path, comment: str) -> KeyPair:
    if path.exists():
        return KeyPair.of(path.read_text())
    key = generate_key_pair(comment)
    key.save(path)
    return key
