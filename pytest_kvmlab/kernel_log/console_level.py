"""Which messages of a kernel come to its console (Documentation/admin-guide/kernel-parameters.txt)."""

# CONFIG_CONSOLE_LOGLEVEL_DEFAULT and _QUIET, as Debian has them too. Messages below the level are shown;
# warnings have level 4.
_DEFAULT, _QUIET, _DEBUG, _WITH_WARNINGS = 7, 4, 10, 5


def shows_warnings(cmdline: str) -> bool:
    """Whether all that a kernel complains about appears on its console.

    Args:
        cmdline: what the kernel is told; of words that contradict each other the last counts.
    """
    return _level(cmdline) >= _WITH_WARNINGS


def with_warnings(cmdline: str | None) -> str | None:
    """Let a kernel that is told to be quiet show its warnings even so: a few lines in a boot.

    Args:
        cmdline: what the kernel is told, if it is told anything.
    """
    if cmdline is None or shows_warnings(cmdline):
        return cmdline
    return f"{cmdline} loglevel={_WITH_WARNINGS}"


def _level(cmdline: str) -> int:
    level = _DEFAULT
    for word in cmdline.split():
        name, _, value = word.partition("=")
        if name == "quiet":
            level = _QUIET
        elif name == "debug":
            level = _DEBUG
        elif name == "loglevel" and value.isdecimal():
            level = int(value[:3])
    return level
