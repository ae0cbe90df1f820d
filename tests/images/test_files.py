"""The image debian-12-files: a share that everybody reads and writes."""

import pytest

from pytest_kvmlab import Guest

pytestmark = [pytest.mark.kvm(image="debian-12-files"), pytest.mark.timeout(1800)]

SHARE = "//localhost/files"


def test_a_file_goes_there_and_comes_back(shared_guest: Guest) -> None:
    shared_guest.succeed("echo precious > /root/note")
    shared_guest.succeed(f"smbclient --no-pass {SHARE} --command 'put /root/note kept; get kept /root/back'")
    assert shared_guest.succeed("cat /root/back") == "precious\n"
    assert shared_guest.succeed("stat -c '%U:%G %a' /srv/files/kept") == "nobody:nogroup 664\n"


def test_whoever_has_no_account_is_a_guest(shared_guest: Guest) -> None:
    listed = shared_guest.succeed(f"smbclient {SHARE} --user=stranger%secret --command 'mkdir ours; ls'")
    assert "ours" in listed


def test_what_is_outside_the_share_stays_there(shared_guest: Guest) -> None:
    shared_guest.succeed("ln -sfn /etc /srv/files/outside")
    refused = shared_guest.run(f"smbclient --no-pass {SHARE} --command 'get outside/hostname -'")
    assert "NT_STATUS" in refused.stdout + refused.stderr


def test_other_machines_reach_nothing_but_the_share(shared_guest: Guest) -> None:
    shared_guest.wait_for_unit("smbd.service")
    with shared_guest.connect(445):
        pass
    ports = {address.split(":")[-1] for address in shared_guest.testinfra.socket.get_listening_sockets()}
    assert {"445"} <= ports
    assert not ports & {"137", "138", "139", "389"}
