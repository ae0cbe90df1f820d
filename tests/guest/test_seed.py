"""A guest that knows nothing of us, told by a seed who may log in: Debian with cloud-init."""

import json
import subprocess
from pathlib import Path

import pytest

from pytest_kvmlab import MakeGuest
from pytest_kvmlab.drivers.ssh_keys import generate_key_pair
from pytest_kvmlab.drivers.ssh_login import Login
from pytest_kvmlab.errors import ConfigError
from pytest_kvmlab.lab.build import build
from pytest_kvmlab.lab.launch import Launcher
from pytest_kvmlab.lab.seed import Seed, cloud_config, write_seed

RECIPE = Path(__file__).with_name("debian-12-cloud")
PASSWORD = '# "ä" : {\\}\' 😀'  # noqa: S105 - lets into guests that live for one test


@pytest.fixture(scope="module")
def image(launcher: Launcher) -> str:
    store = launcher.images._store
    return build(RECIPE, store, guests=launcher, progress=lambda _step, _share: None).name


def seed(login: Login) -> Seed:
    return Seed("0123-abcd", "web", login, generate_key_pair("host"), keep_host_keys=False)


def said(*command: str | Path) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


@pytest.mark.timeout(1200)
def test_a_key_leads_to_a_user_that_was_not_there_on_the_guest_that_was_started(
    make_guest: MakeGuest, image: str
) -> None:
    guest = make_guest(image=image, seed=True, login={"user": "tester"}, ready="cloud-init status --wait")
    assert guest.succeed("id -un; hostname; sudo id -un").split() == ["tester", guest.name, "root"]
    assert guest.host_key.split()[1] in guest.succeed("cat /etc/ssh/ssh_host_*.pub")
    assert guest.succeed("cat /sys/block/vdb/ro") == "1\n"
    guest.snapshot("seeded")


@pytest.mark.timeout(1200)
def test_a_password_leads_in_over_the_serial_line_and_over_ssh(make_guest: MakeGuest, image: str) -> None:
    login = {"user": "root", "password": PASSWORD, "channel": "serial"}
    guest = make_guest(image=image, seed=True, login=login, host_key="learn")
    assert guest.succeed("id -un; hostname").split() == ["root", guest.name]
    assert guest.ssh.run("id -un").stdout == "root\n"
    assert PASSWORD not in guest.serial.log


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
