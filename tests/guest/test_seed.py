"""What a guest that knows nothing of us is told by its seed, as mtools read it."""

import json
import subprocess
from pathlib import Path

import pytest

from pytest_kvmlab.drivers.ssh_keys import generate_key_pair
from pytest_kvmlab.drivers.ssh_login import Login
from pytest_kvmlab.errors import ConfigError
from pytest_kvmlab.lab.seed import Seed, cloud_config, write_seed


def seed(login: Login) -> Seed:
    return Seed("0123-abcd", "web", login, generate_key_pair("host"), keep_host_keys=False)


def said(*command: str | Path) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


def test_a_seed_is_a_labelled_disk_that_only_its_owner_reads(tmp_path: Path) -> None:
    disk, told = tmp_path / "seed.img", seed(Login("root", private_key=generate_key_pair().private))
    write_seed(disk, told)
    assert disk.stat().st_mode & 0o777 == 0o600
    assert "CIDATA" in said("mlabel", "-s", "-i", disk, "::")
    names = {"instance-id": "0123-abcd", "local-hostname": "web"}
    assert json.loads(said("mtype", "-i", disk, "::meta-data")) == names
    first, _, rest = said("mtype", "-i", disk, "::user-data").partition("\n")
    assert (first, json.loads(rest)) == ("#cloud-config", cloud_config(told))


def test_a_key_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not a private key"):
        write_seed(tmp_path / "seed.img", seed(Login("root", private_key="nonsense")))
