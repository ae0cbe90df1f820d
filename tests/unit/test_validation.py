"""A mistake in what was written, told to who wrote it."""

from collections.abc import Mapping
from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator

from pytest_kvmlab.errors import ConfigError
from pytest_kvmlab.spec.validation import validate


class Card(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    model: Literal["virtio", "e1000"] = "virtio"
    mtu: Annotated[int, Field(ge=576)] = 1500


class Login(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    user: str
    password: SecretStr | None = None

    @field_validator("user")
    @classmethod
    def _known(cls, user: str) -> str:
        if user == "nobody":
            raise ValueError("may not log in")
        return user


class Lab(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    login: Login | str = "root"
    cards: Annotated[tuple[Card, ...], Field(strict=False)] = ()
    network: Mapping[str, Card] = {}
    memory_size: int = Field(1, alias="memory")


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ({"crads": []}, "crads: unknown key (did you mean 'cards'?)"),
        ({"memory_size": 1}, "memory_size: unknown key (did you mean 'memory'?)"),
        ({"zzz": 1}, "zzz: unknown key"),
        ({"network": {"lan": {"modle": "e1000"}}}, "network.lan.modle: unknown key (did you mean 'model'?)"),
        ({"network": {"lan": {"model": "e100"}}}, "found 'e100' (did you mean 'e1000'?)"),
        ({"cards": [{}, {"mtu": 10}]}, "cards[1].mtu: should be greater than or equal to 576; found 10"),
        ({"cards": 1}, "cards: should be a list; found 1"),
        ({"memory": "1"}, "memory: should be a valid integer; found '1'"),
        ({"login": 3}, "login: should be a table or should be a text; found 3"),
        ({"login": {"usr": "x"}}, "login.user: missing"),
        ({"login": {"user": "nobody"}}, "login.user: may not log in; found 'nobody'"),
        ({"memory": "9" * 5000}, "9…"),
    ],
)
def test_a_mistake_is_placed_and_explained(data: Mapping[str, object], told: str) -> None:
    with pytest.raises(ConfigError) as raised:
        validate(Lab, data, source="wiki.lab.toml")
    assert raised.value.message.startswith("wiki.lab.toml: ")
    assert told in raised.value.message
    assert len(raised.value.message) < 300


def test_every_mistake_is_told_and_the_valid_keys_once() -> None:
    with pytest.raises(ConfigError) as raised:
        validate(Lab, {"cards": [{"a": 1, "b": 2}]}, source="mark")
    assert raised.value.message.splitlines() == [
        "mark: 2 mistakes",
        "  - cards[0].a: unknown key",
        "  - cards[0].b: unknown key",
    ]
    assert raised.value.hint == "valid keys of cards[0]: model, mtu"


def test_a_wrong_password_is_not_repeated() -> None:
    with pytest.raises(ConfigError, match=r"login\.password") as raised:
        validate(Lab, {"login": {"user": "root", "password": 4711}}, source="mark")
    assert "4711" not in str(raised.value)


def test_what_is_right_becomes_the_model() -> None:
    lab = validate(Lab, {"login": {"user": "root"}, "cards": [{"mtu": 9000}], "memory": 2}, source="mark")
    assert lab == Lab(login=Login(user="root"), cards=(Card(mtu=9000),), memory=2)
