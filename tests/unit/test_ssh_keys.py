"""Key pairs and host keys, read back by the programs that have to read them."""

import stat
import subprocess
from pathlib import Path

import pytest

from pytest_kvmlab.drivers.ssh_keys import HostKey, KeyPair, generate_key_pair, load_private_key
from pytest_kvmlab.errors import ConfigError


@pytest.fixture
def pair() -> KeyPair:
    return generate_key_pair("a comment")


def _saved(pair: KeyPair, folder: Path) -> Path:
    path = folder / "key"
    pair.save(path)
    return path


def _output(*command: str | Path) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=20).stdout


def test_every_pair_is_another_one(pair: KeyPair) -> None:
    assert generate_key_pair().public.split()[1] != pair.public.split()[1]


def test_openssh_derives_our_public_line_from_our_private_key(pair: KeyPair, tmp_path: Path) -> None:
    derived = _output("ssh-keygen", "-y", "-f", _saved(pair, tmp_path))
    assert derived.split()[:2] == pair.public.split()[:2]


def test_dropbear_can_convert_our_private_key(pair: KeyPair, tmp_path: Path) -> None:
    converted = tmp_path / "dropbear"
    _output("dropbearconvert", "openssh", "dropbear", _saved(pair, tmp_path), converted)
    assert pair.public.split()[1] in _output("dropbearkey", "-y", "-f", converted)


def test_a_saved_key_is_readable_by_its_owner_alone(pair: KeyPair, tmp_path: Path) -> None:
    assert stat.S_IMODE(_saved(pair, tmp_path).stat().st_mode) == 0o600


def test_saving_never_writes_over_a_file(pair: KeyPair, tmp_path: Path) -> None:
    _saved(pair, tmp_path)
    with pytest.raises(FileExistsError):
        _saved(generate_key_pair(), tmp_path)


def test_the_private_key_stays_out_of_repr(pair: KeyPair) -> None:
    assert "PRIVATE" in pair.private
    assert "PRIVATE" not in repr(pair)


def test_a_fingerprint_is_the_one_that_openssh_shows(pair: KeyPair, tmp_path: Path) -> None:
    shown = _output("ssh-keygen", "-l", "-f", _saved(pair, tmp_path))
    assert HostKey.parse(pair.public).fingerprint == shown.split()[1]


def test_a_host_key_line_is_read_back_without_its_comment(pair: KeyPair) -> None:
    assert HostKey.parse(f"  {pair.public}\n").line == " ".join(pair.public.split()[:2])


@pytest.mark.parametrize(
    "line",
    ["", "ssh-ed25519", "ssh-ed25519 !!!!", "ssh-ed25519 AAAA", "ssh-rsa AAAAC3NzaC1lZDI1NTE5AAAA", "ß ÄÄ"],
)
def test_what_is_no_host_key_is_refused(line: str) -> None:
    with pytest.raises(ConfigError, match="not an SSH host key"):
        HostKey.parse(line)


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa", "rsa"])
@pytest.mark.parametrize("form", ["RFC4716", "PEM"])
def test_the_user_s_own_keys_can_be_loaded(kind: str, form: str, tmp_path: Path) -> None:
    path = tmp_path / "key"
    _output("ssh-keygen", "-q", "-t", kind, "-m", form, "-N", "", "-f", path)
    loaded = load_private_key(path.read_text())
    assert loaded.get_base64() == path.with_suffix(".pub").read_text().split()[1]


def test_a_key_with_a_passphrase_is_refused_by_that_reason(tmp_path: Path) -> None:
    path = tmp_path / "key"
    _output("ssh-keygen", "-q", "-t", "ed25519", "-N", "secret", "-f", path)
    with pytest.raises(ConfigError, match="passphrase"):
        load_private_key(path.read_text())


@pytest.mark.parametrize("text", ["", "nonsense", "-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END"])
def test_what_is_no_private_key_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="not a private key"):
        load_private_key(text)
