"""What cloud-init is told; that it understands it is shown by a guest."""

import json
import re

import pytest

from pytest_kvmlab.drivers.ssh_keys import KeyPair, generate_key_pair
from pytest_kvmlab.drivers.ssh_login import Login
from pytest_kvmlab.lab.seed import Seed, cloud_config, yaml

OWN = generate_key_pair()
HOST = generate_key_pair("host")
KEY_LOGIN = Login("root", private_key=OWN.private)


def seed(login: Login = KEY_LOGIN, host: KeyPair | None = HOST, *, keep_host_keys: bool = False) -> Seed:
    return Seed("0123-abcd", "web", login, host, keep_host_keys)


def account(login: Login) -> dict[str, object]:
    users = cloud_config(seed(login))["users"]
    assert isinstance(users, list)
    return dict(users[0])


def test_a_key_login_gets_the_public_half_only() -> None:
    said = account(KEY_LOGIN)
    assert said["ssh_authorized_keys"] == [OWN.public.removesuffix(" kvmlab")]
    assert "plain_text_passwd" not in said
    assert "ssh_pwauth" not in cloud_config(seed())


def test_a_password_login_may_use_it_over_ssh_too() -> None:
    login = Login("tester", password="geheim")  # noqa: S106  nobody's
    assert ("plain_text_passwd", "geheim") in account(login).items()
    assert cloud_config(seed(login))["ssh_pwauth"] is True
    assert "ssh_authorized_keys" not in account(login)


@pytest.mark.parametrize(("user", "lines"), [("root", 2), ("tester", 1)])
def test_the_ssh_server_takes_passwords_from_its_start(user: str, lines: int) -> None:
    files = cloud_config(seed(Login(user, password="geheim")))["write_files"]  # noqa: S106  nobody's
    assert isinstance(files, list)
    assert [len(file["content"].splitlines()) for file in files] == [lines]


@pytest.mark.parametrize(("user", "may_become_root"), [("root", False), ("tester", True)])
def test_a_user_other_than_root_may_become_root(user: str, *, may_become_root: bool) -> None:
    assert ("sudo" in account(Login(user, private_key=OWN.private))) is may_become_root


def test_a_password_that_the_image_has_is_not_taken_away() -> None:
    assert account(KEY_LOGIN)["lock_passwd"] is False


def test_the_guest_shows_the_host_key_that_was_made_for_it() -> None:
    keys = {"ed25519_private": HOST.private, "ed25519_public": HOST.public}
    assert cloud_config(seed())["ssh_keys"] == keys


@pytest.mark.parametrize("pinned", [True, False])
def test_only_a_host_key_that_is_pinned_stays(*, pinned: bool) -> None:
    config = cloud_config(seed(host=None, keep_host_keys=pinned))
    assert ("ssh_deletekeys" in config, "ssh_keys" in config) == (pinned, False)


@pytest.mark.parametrize("text", ["", "x: y", "- #a", '"\\', "ä", "\x7f\x85\u2028\ufeff", "😀", "null"])
def test_text_in_yaml_stays_text(text: str) -> None:
    """YAML's escapes are Python's, too, and of JSON's it knows all that are left."""
    written = yaml([text])
    assert written.isascii()
    assert written.isprintable()
    longer = re.sub(r"\\U([0-9a-f]{8})", lambda found: chr(int(found[1], 16)), written)
    assert json.loads(longer) == [text]
