"""The lock of an image: what is written can be read, and what was tampered with is refused."""

import pytest

from pytest_kvmlab.errors import ConfigError
from pytest_kvmlab.spec.lock import LockedPackage, lock_text, parse_lock

APT = LockedPackage(name="apt", version="2.6.1", sha256="a" * 64, size=1_400_000)
LOGIN = LockedPackage(name="login", version="1:4.13+dfsg1-1+b1", sha256="b" * 64, size=600_000)


def test_what_is_written_can_be_read() -> None:
    assert parse_lock(lock_text([LOGIN, APT]), source="lock") == (APT, LOGIN)


def test_the_order_of_packages_does_not_matter() -> None:
    assert lock_text([LOGIN, APT]) == lock_text([APT, LOGIN])


def test_each_package_has_a_line_of_its_own() -> None:
    assert [line for line in lock_text([APT, LOGIN]).splitlines() if "2.6.1" in line] == [
        f'  {{"name": "apt", "version": "2.6.1", "sha256": "{"a" * 64}", "size": 1400000}},'
    ]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "is not JSON"),
        (lock_text([APT, APT]), "names a package twice: apt"),
        (lock_text([APT]).replace("2.6.1", "2.6.1 --allow-unauthenticated"), r"packages\[0\].version"),
        (lock_text([APT]).replace('"apt"', '"-oDir=/"'), r"packages\[0\].name"),
        (lock_text([APT]).replace("a" * 64, "../../etc/passwd"), r"packages\[0\].sha256"),
    ],
)
def test_what_is_no_lock_is_refused(text: str, told: str) -> None:
    with pytest.raises(ConfigError, match=f"^lock:? .*{told}|^lock: {told}"):
        parse_lock(text, source="lock")
