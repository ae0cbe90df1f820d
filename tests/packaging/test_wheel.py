"""The package as users get it: the sdist, the wheel built from it, and that wheel in a fresh environment."""

import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterable
from pathlib import Path
from zipfile import ZipFile

import pytest

import pytest_kvmlab

ROOT = Path(__file__).parents[2]
SHIPPED = ("fixtures", "images")


def run(*command: str | Path, cwd: Path) -> str:
    """The standard output of a command; what it said on both streams is in the failure."""
    ran = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 0, f"{command} in {cwd}:\n{ran.stdout}\n{ran.stderr}"
    return ran.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Without --wheel, `build` makes the sdist first and the wheel out of that."""
    built = tmp_path_factory.mktemp("built")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", built, ROOT, cwd=built)
    assert len(list(built.glob("*.tar.gz"))) == 1
    return next(built.glob("*.whl"))


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment that has the wheel for itself and borrows the dependencies of the running one."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    run(
        sys.executable,
        "-m",
        "pip",
        "--python",
        python,
        "install",
        "--no-deps",
        "--no-index",
        wheel,
        cwd=folder,
    )
    borrowed = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    own = Path(
        run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip()
    )
    (own / "borrowed.pth").write_text("\n".join(sorted(borrowed)), encoding="utf-8")
    return python


def files_below(folders: Iterable[str]) -> set[str]:
    """The files of the repository in these folders, relative to its root."""
    found = (path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file())
    return {path.relative_to(ROOT).as_posix() for path in found if path.suffix != ".pyc"}


def test_the_wheel_carries_every_shipped_lab_and_recipe(wheel: Path) -> None:
    carried = set(ZipFile(wheel).namelist())
    assert {f"pytest_kvmlab/{name}" for name in files_below(SHIPPED)} <= carried


def test_the_wheel_has_one_top_level_package(wheel: Path) -> None:
    tops = {name.split("/")[0] for name in ZipFile(wheel).namelist()}
    assert tops == {"pytest_kvmlab", f"pytest_kvmlab-{pytest_kvmlab.__version__}.dist-info"}


def test_the_installed_package_finds_its_recipes_and_labs(python: Path, tmp_path: Path) -> None:
    program = """if True:
        from importlib.resources import files
        package = files("pytest_kvmlab")
        assert package.joinpath("images/micro/image.toml").read_text()
        print(package, *(file.name for file in package.joinpath("fixtures/demo").iterdir()))
    """
    place, *names = run(python, "-c", program, cwd=tmp_path).split()
    assert Path(place).is_relative_to(python.parents[1])
    assert [name for name in names if name.endswith(".lab.toml")]


def test_pytest_offers_the_options_of_the_installed_package(python: Path, tmp_path: Path) -> None:
    assert "--kvm-lab" in run(python, "-m", "pytest", "--help", cwd=tmp_path)


def test_the_command_tells_its_version(python: Path, tmp_path: Path) -> None:
    assert pytest_kvmlab.__version__ in run(python.parent / "kvmlab", "--version", cwd=tmp_path)
