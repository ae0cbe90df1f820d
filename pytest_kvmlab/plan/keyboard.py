"""Names of keys, as a person writes them, and their numbers in Linux (linux/input-event-codes.h)."""

from pytest_kvmlab.errors import ConfigError

_ROWS = {2: "1234567890", 16: "qwertyuiop", 30: "asdfghjkl", 44: "zxcvbnm"}
_NAMED = {
    "esc": 1, "minus": 12, "equal": 13, "backspace": 14, "tab": 15, "enter": 28, "ret": 28, "ctrl": 29,
    "semicolon": 39, "shift": 42, "backslash": 43, "comma": 51, "dot": 52, "slash": 53, "alt": 56,
    "space": 57, "capslock": 58, "sysrq": 99, "home": 102, "up": 103, "pageup": 104, "left": 105,
    "right": 106, "end": 107, "down": 108, "pagedown": 109, "insert": 110, "delete": 111, "del": 111,
    "meta": 125,
}  # fmt: skip
_CODES = (
    _NAMED
    | {letter: first + place for first, row in _ROWS.items() for place, letter in enumerate(row)}
    | {f"f{number}": 58 + number for number in range(1, 11)}
    | {"f11": 87, "f12": 88}
)


def key_codes(combination: str) -> list[int]:
    """Read keys that are pressed together.

    Args:
        combination: names joined by `-`, such as `ctrl-alt-delete`, `shift-a` or `f2`.

    Returns:
        Their numbers, in the order given.

    Raises:
        ConfigError: a name that no key has.
    """
    names = combination.lower().split("-")
    unknown = [name for name in names if name not in _CODES]
    if unknown:
        raise ConfigError(
            f"no key is called {unknown[0]!r} (in {combination!r})", f"use: {', '.join(sorted(_CODES))}"
        )
    return [_CODES[name] for name in names]
