import pytest

from pytest_kvmlab.errors import ConfigError
from pytest_kvmlab.plan.keyboard import key_codes


@pytest.mark.parametrize(
    ("combination", "codes"),
    [
        ("a", [30]),
        ("ctrl-alt-delete", [29, 56, 111]),
        ("Shift-B", [42, 48]),
        ("f1", [59]),
        ("f10", [68]),
        ("f11", [87]),
        ("0", [11]),
        ("m", [50]),
    ],
)
def test_keys_have_the_numbers_that_linux_gives_them(combination: str, codes: list[int]) -> None:
    assert key_codes(combination) == codes


@pytest.mark.parametrize("combination", ["", "ctrl-", "hyper-x", "ä", "a b"])
def test_what_no_key_is_called_is_refused(combination: str) -> None:
    with pytest.raises(ConfigError, match=r"no key is called .*\n.*what to do: use: 0, 1"):
        key_codes(combination)
