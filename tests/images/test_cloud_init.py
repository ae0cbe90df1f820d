"""A guest that knows nothing of us, told by a seed who may log in: Debian with cloud-init."""

from pathlib import Path

import pytest

from pytest_kvmlab import MakeGuest
from pytest_kvmlab.lab.build import build
from pytest_kvmlab.lab.launch import Launcher

# Written when all of its stages are over (cloud-init's documentation, "Boot stages").
FINISHED = "/run/cloud-init/result.json"
RECIPE = Path(__file__).with_name("debian-12-cloud")
PASSWORD = '# "ä" : {\\}\' 😀'  # noqa: S105 - lets into guests that live for one test


@pytest.fixture(scope="module")
def image(request: pytest.FixtureRequest) -> str:
    launcher = request.config.pluginmanager.getplugin("kvmlab-session").run.launcher
    assert isinstance(launcher, Launcher)
    store = launcher.images._store
    return build(RECIPE, store, guests=launcher, progress=lambda _step, _share: None).name


@pytest.mark.timeout(1200)
def test_a_key_leads_to_a_user_that_was_not_there_on_the_guest_that_was_started(
    make_guest: MakeGuest, image: str
) -> None:
    guest = make_guest(image=image, seed=True, login={"user": "tester"}, ready=f"test -e {FINISHED}")
    assert guest.succeed("id -un; hostname; sudo id -un").split() == ["tester", guest.name, "root"]
    assert guest.host_key.split()[1] in guest.succeed("sudo cat /etc/ssh/ssh_host_*.pub")
    assert guest.succeed("cat /sys/block/vdb/ro") == "1\n"
    guest.snapshot("seeded")


@pytest.mark.timeout(1200)
def test_a_password_leads_in_over_the_serial_line_and_over_ssh(make_guest: MakeGuest, image: str) -> None:
    login = {"user": "root", "password": PASSWORD, "channel": "serial"}
    guest = make_guest(image=image, seed=True, login=login, host_key="learn")
    assert guest.succeed("id -un; hostname").split() == ["root", guest.name]
    assert guest.ssh.run("id -un").stdout == "root\n"
    assert PASSWORD not in guest.serial.log
