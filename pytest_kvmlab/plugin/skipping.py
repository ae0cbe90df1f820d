"""Which tests need a guest: decided by where their fixtures come from, not by what they are called."""

from collections.abc import Iterator

import pytest

from pytest_kvmlab.plugin import fixtures

REASON = "needs a KVM guest: run pytest with --kvm-lab"


def skip_without_lab(items: list[pytest.Item]) -> None:
    """Mark as skipped every test that uses a fixture of this plugin.

    Args:
        items: the collected tests.
    """
    for item in items:
        if our_fixtures(item):
            item.add_marker(pytest.mark.skip(reason=REASON))


def our_fixtures(item: pytest.Item) -> set[str]:
    """The names of the fixtures of this plugin that a test uses, by itself or through others."""
    return {
        getattr(function, "__name__", "")
        for function in _fixture_functions(item)
        if function.__module__ == fixtures.__name__
    }


def _fixture_functions(item: pytest.Item) -> Iterator[object]:
    """The functions behind all fixtures of a test, those of its fixtures included.

    Of several fixtures of one name the last one counts; the one before it only where that one asks for it.
    """
    info = getattr(item, "_fixtureinfo", None)
    for name, definitions in (info.name2fixturedefs if info else {}).items():
        for definition in reversed(definitions):
            yield definition.func
            if name not in definition.argnames:
                break
