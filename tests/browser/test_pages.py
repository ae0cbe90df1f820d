"""The pages in headless Chromium: complete, quiet, readable when enlarged, quick, printable."""

import html
import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from pytest_kvmlab.compare.comparison import Side, compare
from pytest_kvmlab.report.comparison_page import comparison_page
from pytest_kvmlab.report.run_page import run_page
from tests.unit.recorded_runs import case, guest, luck, run
from tests.unit.test_pages import HOSTILE, PNG, hostile_run, thousand_tests

# A page at 400 % on a screen of 1280 has the room of 320 pixels (WCAG 2.2, 1.4.10).
NARROW = 320
# No word ends in it, and it is no output of a command, which pages leave out.
LONG = "wide_" * 600
MOST_SECONDS = 2.0
# Opens the page in a frame of a given width, and writes down what it finds there.
LOOK = """<!DOCTYPE html><title>look</title>
<iframe id="frame" width="{width}" height="800"></iframe><pre id="found"></pre>
<script>
const frame = document.getElementById("frame"), started = performance.now();
frame.onload = () => {{
  const page = frame.contentDocument, body = page.documentElement;
  const layout = body.scrollHeight;
  document.getElementById("found").textContent = JSON.stringify({{
    seconds: (performance.now() - started) / 1000,
    height: layout,
    overflow: body.scrollWidth - body.clientWidth,
    pictures: [...page.images].map(each => each.naturalWidth),
    broken: [...page.querySelectorAll("a[href^='#']")].filter(
      each => !page.getElementById(each.getAttribute("href").slice(1))).length,
    scripts: page.scripts.length,
  }});
}};
frame.src = "{page}";
</script>"""


@dataclass(frozen=True)
class Seen:
    """What Chromium found in a page."""

    seconds: float
    height: int
    overflow: int
    pictures: list[int]
    broken: int
    scripts: int
    complaints: list[str]


def chromium(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = shutil.which("chromium")
    assert program, "these tests need Debian's package chromium"
    common = ["--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--enable-logging=stderr"]
    return subprocess.run(
        [program, *common, *arguments], capture_output=True, text=True, timeout=120, check=True
    )


def seen(page: Path, *, width: int = 1280) -> Seen:
    look = page.with_name("look.html")
    look.write_text(LOOK.format(width=width, page=page.name))
    profile = f"--user-data-dir={page.parent / 'profile'}"
    ran = chromium(profile, "--allow-file-access-from-files", "--timeout=60000", "--dump-dom", look.as_uri())
    found = re.search(r'<pre id="found">(.+?)</pre>', ran.stdout, re.DOTALL)
    assert found, ran.stdout[-500:]
    complaints = [line for line in ran.stderr.splitlines() if "CONSOLE" in line]
    return Seen(**json.loads(html.unescape(found[1])), complaints=complaints)


@pytest.fixture
def report(tmp_path: Path) -> Path:
    folder = tmp_path / "test" / "web"
    folder.mkdir(parents=True)
    (folder / "console.log").write_text(f"[    0.1] {HOSTILE}\n" + LONG)
    (folder / "screenshot.png").write_bytes(PNG)
    page = tmp_path / "report.html"
    page.write_text(run_page(hostile_run(), tmp_path))
    return page


@pytest.fixture
def comparison(tmp_path: Path) -> Path:
    chance = luck(1)
    runs = [
        run(
            *(
                case(f"test_{at}", "passed", guest(phases={"ready": late + chance.random()}))
                for at in range(10)
            )
        )
        for late in (2, 4)
    ]
    page = tmp_path / "comparison.html"
    page.write_text(comparison_page([compare(Side(HOSTILE, (runs[0],)), Side("after", (runs[1],)))]))
    return page


@pytest.mark.parametrize("name", ["report", "comparison"])
@pytest.mark.parametrize("width", [1280, NARROW])
def test_a_page_is_complete_quiet_and_fits(request: pytest.FixtureRequest, name: str, width: int) -> None:
    found = seen(request.getfixturevalue(name), width=width)
    assert found.complaints == []
    assert (found.broken, found.scripts, found.overflow) == (0, 0, 0)
    assert all(found.pictures)
    assert len(found.pictures) == (name == "report")


def printed(page: Path) -> str:
    """What stands on paper, its spaces and line breaks aside: where lines break is the printer's business."""
    paper = page.with_suffix(".pdf")
    chromium(f"--user-data-dir={page.parent / 'profile'}", f"--print-to-pdf={paper}", page.as_uri())
    reader = shutil.which("pdftotext")
    assert reader, "this test needs Debian's package poppler-utils"
    read = subprocess.run([reader, paper, "-"], capture_output=True, text=True, timeout=60, check=True)
    return "".join(read.stdout.split())


def test_a_report_is_printed_with_all_tests_and_what_is_open(report: Path) -> None:
    paper = printed(report)
    assert "1of2testsfailed" in paper
    assert paper.count("test_shop.py::test_other") == 2  # in the table, and as the line that opens it
    assert paper.count("wide_") > 550  # the console of the one that failed; pages have headings in between


def test_a_comparison_is_printed_with_its_table_and_plots(comparison: Path) -> None:
    paper = printed(comparison)
    assert "RunsKernelofguestsKernelofthehost" in paper
    assert "web(debian-12):ready" in paper


def test_a_thousand_tests_open_at_once(tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    page.write_text(run_page(thousand_tests(tmp_path), tmp_path))
    found = seen(page)
    assert found.height > 10_000
    assert found.seconds < MOST_SECONDS
