"""The echo of a secret, however it arrives."""

import pytest

from pytest_kvmlab.drivers.echo import SecretEcho


def shown(*pieces: bytes, secret: bytes = b"secret") -> bytes:
    echo = SecretEcho()
    echo.expect(secret)
    return b"".join(map(echo.cut, pieces))


@pytest.mark.parametrize("size", range(1, 17))
def test_an_echo_is_hidden_in_whatever_pieces_it_comes(size: int) -> None:
    line = b" sesecret\r\nwelcome"
    pieces = [line[at : at + size] for at in range(0, len(line), size)]
    assert shown(*pieces) == b" se(hidden)\r\nwelcome"


def test_what_only_begins_like_the_secret_is_shown() -> None:
    assert shown(b" sec", b"ond\r\n") == b" second\r\n"


def test_the_same_letters_mean_something_else_on_the_next_line() -> None:
    assert shown(b"\r\n", b"a secret place") == b"\r\na secret place"
    assert shown(b"secret\r\n", b"secret") == b"(hidden)\r\nsecret"


def test_an_empty_secret_hides_nothing() -> None:
    assert shown(b"login: ", b"\r\n", secret=b"") == b"login: \r\n"


def test_nothing_is_held_back_where_no_secret_is_expected() -> None:
    assert SecretEcho().cut(b"secret") == b"secret"
