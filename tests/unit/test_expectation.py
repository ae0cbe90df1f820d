"""The key `expect_kernel`, wherever it may be written."""

from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from pytest_kvmlab.errors import ConfigError
from pytest_kvmlab.spec.expectation import Expectation
from pytest_kvmlab.spec.guest import GuestKeys
from pytest_kvmlab.spec.labfile import lab_schema, load_lab
from pytest_kvmlab.spec.marker import KvmMark, WrittenMark, merge_marks
from pytest_kvmlab.spec.resolved import resolve_guest
from pytest_kvmlab.spec.selection import refuse_guest_keys

PANIC = Expectation("panic")


def mark(**keys: object) -> KvmMark:
    return merge_marks([WrittenMark("test_it", Path(), keys)])


def test_a_mark_expects_complaints() -> None:
    assert mark(expect_kernel=["panic", "oom: stress"]).expect_kernel == (PANIC, Expectation("oom", "stress"))


def test_a_wrong_kind_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"expect_kernel\[0\]: no such kind.*did you mean 'panic'"):
        mark(expect_kernel=["panik"])


def test_a_guest_of_a_lab_file_expects_complaints(tmp_path: Path) -> None:
    file = tmp_path / "shop.lab.toml"
    file.write_text('[guest.web]\nimage = "micro"\nexpect_kernel = ["panic"]\n')
    keys = load_lab(file).guests["web"]
    assert resolve_guest(keys, source="web").expect_kernel == (PANIC,)


def test_a_guest_expects_nothing_by_default() -> None:
    assert resolve_guest(GuestKeys(image="micro"), source="web").expect_kernel == ()


def test_the_mark_of_a_test_with_a_whole_lab_may_expect_complaints() -> None:
    refuse_guest_keys(mark(lab="shop", expect_kernel=["panic"]), where="test_it")
    with pytest.raises(ConfigError, match="the mark says memory about one guest"):
        refuse_guest_keys(mark(lab="shop", expect_kernel=["panic"], memory="512MiB"), where="test_it")


def test_an_editor_knows_the_key() -> None:
    validator = Draft202012Validator(lab_schema())
    assert validator.is_valid({"guest": {"web": {"image": "micro", "expect_kernel": ["oom: stress"]}}})
    assert not validator.is_valid({"guest": {"web": {"image": "micro", "expect_kernel": [1]}}})
