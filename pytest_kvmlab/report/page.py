"""Pages of one file: nothing is fetched, no script runs, and what a guest wrote is only ever text."""

from functools import cache

from pytest_kvmlab.errors import ConfigError

try:
    from jinja2 import Environment, PackageLoader, StrictUndefined
except ImportError as error:
    raise ConfigError(
        f"pages need {error.name}, which is not installed", "pip install 'pytest-kvmlab[report]'"
    ) from error

_LONGEST_SECONDS = 100.0


def rendered(template: str, **values: object) -> str:
    """Make a page.

    Args:
        template: the name of a file in `report/pages`.
        values: what it shows; escaped where it is put in.
    """
    return _environment().get_template(template).render(values)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("pytest_kvmlab.report", "pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"seconds": _seconds, "printable": printable}
    return environment


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value < _LONGEST_SECONDS else f"{value / 60:.1f} min"


def printable(text: str) -> str:
    """Show control characters, and what turns the direction of text, as U+FFFD; line breaks as such."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() or letter in "\n\t" else "\ufffd" for letter in text)
