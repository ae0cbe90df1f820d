"""What cloud-init in a guest is told: a small file system that its data source NoCloud finds by its label.

https://docs.cloud-init.io/en/latest/reference/datasources/nocloud.html, and for the keys
https://docs.cloud-init.io/en/latest/reference/modules.html (Users and Groups, Set Passwords, SSH).
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from pytest_kvmlab.drivers import fat
from pytest_kvmlab.drivers.ssh_keys import KeyPair
from pytest_kvmlab.drivers.ssh_login import Login

_SIZE = 2**20
_LABEL = "CIDATA"
# sshd_config(5): what is said first counts, and of these files the first in the alphabet is read first.
_SSHD_SETTINGS = "/etc/ssh/sshd_config.d/00-seed.conf"
_NOT_ASCII = re.compile(r"[^\x20-\x7e]")


@dataclass(frozen=True)
class Seed:
    """What one guest has to know to let us in.

    Attributes:
        instance: changes with every new guest; cloud-init does its work once per instance.
        hostname: what the guest calls itself.
        login: who logs in; made if it is not there, a user other than root may become root by sudo.
        host: the host key that the guest has to show; None leaves that to the guest.
        keep_host_keys: the image's own host keys stay, which cloud-init would replace.
    """

    instance: str
    hostname: str
    login: Login
    host: KeyPair | None
    keep_host_keys: bool


def write_seed(path: Path, seed: Seed) -> None:
    """Write a seed down, where only its owner may read it: it holds a private key, and perhaps a password.

    Args:
        path: the file to make, with a FAT file system in it.
        seed: what it says.

    Raises:
        HostError: mtools is not installed.
        ConfigError: the login's key is no private key.
    """
    identity = {"instance-id": seed.instance, "local-hostname": seed.hostname}
    files = {"meta-data": yaml(identity), "user-data": f"#cloud-config\n{yaml(cloud_config(seed))}"}
    fat.make(path, _SIZE, _LABEL, {name: text.encode("ascii") for name, text in files.items()})


def cloud_config(seed: Seed) -> dict[str, object]:
    """Say in cloud-init's words who may log in, and by which key the guest proves what it is.

    Args:
        seed: what the guest has to know.

    Raises:
        ConfigError: the login's key is no private key.
    """
    config: dict[str, object] = {
        "users": [_account(seed.login)],
        "disable_root": False,
        # Else sudo, and whoever asks for the guest's name, waits for a name server that does not know it.
        "manage_etc_hosts": "localhost",
    }
    if seed.login.password is not None:
        config["ssh_pwauth"] = True
        config["write_files"] = [{"path": _SSHD_SETTINGS, "content": _sshd_settings(seed.login.user)}]
    if seed.host is not None:
        config["ssh_keys"] = {"ed25519_private": seed.host.private, "ed25519_public": seed.host.public}
    elif seed.keep_host_keys:
        config["ssh_deletekeys"] = False
    return config


def _sshd_settings(user: str) -> str:
    """Cloud-init obeys `ssh_pwauth` only after the SSH server is up; a file is there before."""
    root = "PermitRootLogin yes\n" if user == "root" else ""
    return f"PasswordAuthentication yes\n{root}"


def _account(login: Login) -> dict[str, object]:
    """Without `lock_passwd`, cloud-init takes away the password that root has in the image."""
    account: dict[str, object] = {"name": login.user, "lock_passwd": False}
    if login.user != "root":
        account["sudo"] = "ALL=(ALL) NOPASSWD:ALL"
    if login.private_key is not None:
        account["ssh_authorized_keys"] = [KeyPair.of(login.private_key).public]
    if login.password is not None:
        account["plain_text_passwd"] = login.password
    return account


def yaml(data: object) -> str:
    """Write data as YAML that is nothing but JSON, so that no text in it can become anything else.

    Args:
        data: dictionaries, lists, texts, numbers.

    Returns:
        One line of ASCII; other characters are escaped as in YAML 1.1 section 5.6, since YAML does not know
        the pairs by which JSON escapes them.
    """
    return _NOT_ASCII.sub(lambda found: f"\\U{ord(found[0]):08x}", json.dumps(data, ensure_ascii=False))
