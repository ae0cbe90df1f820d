"""Labs that come with this package."""

from importlib import resources
from pathlib import Path


def shipped_labs() -> Path:
    """The folder of the shipped labs, one folder each."""
    return Path(str(resources.files("pytest_kvmlab").joinpath("fixtures")))
