"""The networks of a lab: `[network.campus]`."""

import re
from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, ConfigDict, StrictBool, WithJsonSchema, model_validator
from pydantic.config import JsonDict

from pytest_kvmlab.spec.addresses import Interface, Subnet
from pytest_kvmlab.spec.guest import Keys

NetworkMode = Literal["user", "nat", "isolated", "bridge"]

# RFC 1123 section 2.1; a guest's name and a dot still go before it (RFC 1035 section 2.3.4: 255 octets).
_LABEL = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
_DOMAIN = rf"{_LABEL}(\.{_LABEL})*"
_LONGEST_DOMAIN = 200

_KEYS: Mapping[NetworkMode, tuple[str, ...]] = {
    "user": (),
    "nat": ("subnet", "domain", "uplink"),
    "isolated": ("subnet", "domain"),
    "bridge": ("bridge", "simulated"),
}
# A real LAN has its own; only a bridge that stands for one needs to be told.
_KEYS_OF_A_SIMULATED_BRIDGE = (*_KEYS["bridge"], "subnet", "domain")
_EVERY_KEY = (*_KEYS["nat"], *_KEYS["bridge"])


def _domain(written: str) -> str:
    if not re.fullmatch(_DOMAIN, written) or len(written) > _LONGEST_DOMAIN:
        raise ValueError("should be a domain in small letters, such as 'campus.test'")
    return written


Domain = Annotated[
    str,
    AfterValidator(_domain),
    WithJsonSchema({"type": "string", "pattern": f"^{_DOMAIN}$", "maxLength": _LONGEST_DOMAIN}),
]


def _by_mode(schema: JsonDict) -> None:
    """Tell editors, too, which mode has which keys."""
    table: tuple[tuple[NetworkMode, bool | None, tuple[str, ...]], ...] = (
        ("user", None, _KEYS["user"]),
        ("nat", None, _KEYS["nat"]),
        ("isolated", None, _KEYS["isolated"]),
        ("bridge", False, _KEYS["bridge"]),
        ("bridge", True, _KEYS_OF_A_SIMULATED_BRIDGE),
    )
    schema["allOf"] = [_rule(*row) for row in table]


def _rule(mode: NetworkMode, simulated: bool | None, keys: tuple[str, ...]) -> JsonDict:
    """What JSON Schema says of one mode; a key whose schema is `false` must not be there."""
    when: JsonDict = {"mode": {"const": mode}}
    if simulated is not None:
        when["simulated"] = {"const": simulated}
    then: JsonDict = {"properties": {key: False for key in _EVERY_KEY if key not in keys}}
    if mode == "bridge":
        then["required"] = ["bridge"]
    return {
        "if": {"properties": when, "required": ["mode", *(["simulated"] if simulated else [])]},
        "then": then,
    }


class LabNetwork(Keys):
    """A network that guests of a lab have cards in.

    `subnet` of `None` leaves the choice of addresses to the plan; `bridge` is set exactly if the mode is
    `bridge`. A `simulated` bridge is made for the lab and stands for the LAN on a real one.
    """

    model_config = ConfigDict(json_schema_extra=_by_mode)

    mode: NetworkMode
    subnet: Subnet | None = None
    domain: Domain | None = None
    uplink: StrictBool = False
    bridge: Interface | None = None
    simulated: StrictBool = False

    @property
    def is_ours(self) -> bool:
        """Whether it is made for the lab, with a gateway, DHCP and DNS, so that its addresses are known."""
        return self.mode in ("nat", "isolated") or self.simulated

    @model_validator(mode="after")
    def _keys_of_its_mode(self) -> Self:
        valid = _KEYS_OF_A_SIMULATED_BRIDGE if self.simulated else _KEYS[self.mode]
        if unknown := sorted(self.model_fields_set - {"mode", *valid}):
            its = ", ".join(valid) or "none"
            raise ValueError(f"mode '{self.mode}' has no key '{unknown[0]}'; its keys: {its}")
        if self.mode == "bridge" and self.bridge is None:
            raise ValueError("mode 'bridge' needs the name of one: bridge = \"br0\"")
        return self
