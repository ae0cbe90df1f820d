"""Pages: whole, closed to the network, and deaf to what guests wrote."""

import base64
import json
import re
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest

from pytest_kvmlab.compare.comparison import Side, compare
from pytest_kvmlab.report.comparison_page import comparison_page
from pytest_kvmlab.report.lab_picture import picture_of
from pytest_kvmlab.report.plots import times_plot
from pytest_kvmlab.report.run_page import run_page
from pytest_kvmlab.report.simulated import simulated_bridges
from pytest_kvmlab.report.timeline import timeline_of
from pytest_kvmlab.spec.run_record import CardRecord, GuestRecord, RunRecord, TestRecord
from tests.unit.recorded_runs import case, finding, guest, luck, run

HOSTILE = '<script>alert(1)</script>\x1b[2J\x00\u202e$x_{$ {{ 7*7 }} "><img src=x onerror=alert(1)> &amp;'
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNk+A8AAQUBAScY42YAAAAASUVORK5CYII="
)
VOID = {"meta", "img", "br", "link", "input", "hr"}
SVG_LEAVES = {"rect", "path", "use", "text", "title"}


class Reader(HTMLParser):
    """What a browser would see: elements, links, pictures; complains of what is not closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.handlers: list[str] = []
        self.text = ""
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        given = dict(attrs)
        self.ids.add(given.get("id") or "")
        self.links += [value or "" for name, value in attrs if name in ("href", "src", "xlink:href")]
        self.handlers += [name for name in given if name.startswith("on")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def hostile_guest() -> GuestRecord:
    told = guest(findings=[finding(HOSTILE)], phases={HOSTILE: 0.5, "ready": 1.0}, name="web")
    cards = (CardRecord(network=HOSTILE, mac="52:54:00:00:00:01"),)
    return told.model_copy(
        update={
            "image": HOSTILE,
            "kernel": HOSTILE,
            "networks": cards,
            "dongles": (HOSTILE,),
            "folder": "test/web",
        }
    )


def hostile_run() -> RunRecord:
    return run(case(HOSTILE, "failed", hostile_guest(), message=HOSTILE), case("test_other"))


@pytest.fixture
def artifacts(tmp_path: Path) -> Path:
    folder = tmp_path / "test" / "web"
    folder.mkdir(parents=True)
    (folder / "console.log").write_text(f"[    0.1] before\n[    0.2] {HOSTILE}\n[    0.3] after\n")
    (folder / "screenshot.png").write_bytes(PNG)
    event = {"kind": "command", "name": HOSTILE, "seconds": 1.0, "outcome": HOSTILE}
    (folder / "journal.jsonl").write_text(json.dumps(event) + "\n")
    return tmp_path


def hostile_comparison() -> str:
    before = Side(HOSTILE, (run(case(HOSTILE, "passed", hostile_guest()), case("test_other")),))
    return comparison_page([compare(before, Side("after", (hostile_run(),)))])


def test_what_a_guest_wrote_is_text_in_the_page_of_a_run(artifacts: Path) -> None:
    read_closely(run_page(hostile_run(), artifacts))


def test_what_a_guest_wrote_is_text_in_the_page_of_a_comparison() -> None:
    read_closely(hostile_comparison())


def read_closely(page: str) -> None:
    found = Reader(page)
    assert found.handlers == []
    assert not {"script", "iframe", "object", "embed", "form"} & found.seen
    assert "<script>alert(1)</script>" in found.text
    assert "{{ 7*7 }}" in found.text
    assert not {"\x1b", "\x00", "\u202e"} & set(page)


@pytest.mark.parametrize("kind", ["run", "comparison"])
def test_every_link_leads_somewhere_inside(artifacts: Path, kind: str) -> None:
    page = run_page(hostile_run(), artifacts) if kind == "run" else hostile_comparison()
    found = Reader(page)
    assert [link for link in found.links if not link.startswith(("#", "data:image/png;base64,"))] == []
    assert {link[1:] for link in found.links if link.startswith("#")} <= found.ids
    assert "default-src 'none'" in page
    assert not re.search(r"(url\(\s*['\"]?https?:|@import)", page)


def test_the_line_of_a_finding_is_marked_in_the_console(artifacts: Path) -> None:
    page = run_page(run(case("test_it", "failed", guest_with(artifacts, "x BUG: y z", "BUG: y"))), artifacts)
    assert re.findall(r"<mark>(.*?)</mark>", page) == ["x BUG: y z"]


def guest_with(artifacts: Path, console: str, title: str) -> GuestRecord:
    (artifacts / "test" / "web" / "console.log").write_text(f"before\n{console}\nafter\n")
    return guest(findings=[finding(title)]).model_copy(update={"folder": "test/web"})


def test_a_shared_guest_has_its_console_once(artifacts: Path) -> None:
    shared = guest_with(artifacts, "the console", "nothing")
    page = run_page(run(case("test_a", "passed", shared), case("test_b", "passed", shared)), artifacts)
    assert page.count("the console") == 1
    assert 'shown <a href="#test-1">' in page


def test_a_record_cannot_name_a_folder_outside(artifacts: Path) -> None:
    (artifacts.parent / "secret").mkdir(exist_ok=True)
    (artifacts.parent / "secret" / "console.log").write_text("the secret")
    outside = guest().model_copy(update={"folder": "../secret"})
    assert "the secret" not in run_page(run(case("test_it", "passed", outside)), artifacts)


def test_what_is_no_picture_is_not_shown(artifacts: Path) -> None:
    (artifacts / "test" / "web" / "screenshot.png").write_bytes(b"P6 1 1 255")
    assert "<img" not in run_page(hostile_run(), artifacts)


def test_a_run_without_artifacts_has_a_page(tmp_path: Path) -> None:
    assert "1 of 2 tests failed" in run_page(hostile_run(), tmp_path)


def thousand_tests(artifacts: Path) -> RunRecord:
    """Each has a guest of its own, with a long console."""
    tests: list[TestRecord] = []
    for number in range(1000):
        own = artifacts / f"test-{number}" / "web"
        own.mkdir(parents=True)
        (own / "console.log").write_text("".join(f"[{at:9.3f}] a line of a console\n" for at in range(2000)))
        phases = {"create": 0.2, "ssh": 3.0, "ready": 1.0}
        record = guest(phases=phases).model_copy(update={"folder": f"test-{number}/web"})
        tests.append(case(f"test_{number}", "passed" if number % 50 else "failed", record, message=""))
    return run(*tests)


def test_a_thousand_tests_with_consoles_stay_small(tmp_path: Path) -> None:
    started = time.process_time()
    page = run_page(thousand_tests(tmp_path), tmp_path)
    assert len(page.encode()) < 20e6
    assert time.process_time() - started < 30


def test_a_timeline_has_its_parts_where_they_were() -> None:
    test = case("test_it", "passed", guest(phases={"ready": 0.4}), call=0.9)
    timeline = timeline_of(test)
    assert timeline.seconds == pytest.approx(2.0)
    assert [bar.start for bar in timeline.lanes[0].bars] == pytest.approx([0.0, 0.5, 0.95])
    assert (timeline.lanes[1].bars[0].start, timeline.lanes[1].bars[0].length) == pytest.approx((0.0, 0.2))


def test_what_began_before_the_test_is_cut_off() -> None:
    early = guest(phases={"clone": 1.5})
    phase = early.phases[0].model_copy(update={"started": 1e9 - 0.5})
    test = case("test_it", "passed", early.model_copy(update={"phases": (phase,)}), call=0.9)
    (bar,) = timeline_of(test).lanes[1].bars
    assert (bar.start, bar.length) == pytest.approx((0.0, 0.5))


def test_a_lab_is_drawn_with_its_networks() -> None:
    card = CardRecord(network="campus", mac="52:54:00:00:00:01")
    web = guest(name="web").model_copy(update={"networks": (card,)})
    picture = picture_of([web, guest(name="db").model_copy(update={"networks": (card,)})])
    assert picture
    assert [box.name for box in picture.boxes] == ["web", "db"]
    assert [bus.name for bus in picture.buses] == ["campus"]
    assert {wire.y for wire in picture.wires} == {picture.buses[0].y}
    assert picture_of([guest()]) is None


def test_a_simulated_bridge_is_drawn_and_told_as_one() -> None:
    lan = CardRecord(network="lan", mac="52:54:00:00:00:01", simulated_bridge="br0")
    campus = CardRecord(network="campus", mac="52:54:00:00:00:02")
    web = guest(name="web").model_copy(update={"networks": (lan, campus)})
    picture = picture_of([web])
    assert picture
    assert [bus.name for bus in picture.buses] == ["lan (simulated br0)", "campus"]
    told = simulated_bridges(run(case("test_it", "passed", web), case("test_too", "passed", web)))
    assert told == ["network lan: simulated: a bridge of the lab's own stood for br0 and its LAN"]


def test_a_plot_takes_any_name() -> None:
    assert "\N{CJK UNIFIED IDEOGRAPH-4E2D}$_{" in times_plot(
        {"\N{CJK UNIFIED IDEOGRAPH-4E2D}$_{": [1.0]}, name="x"
    )


def test_the_same_comparison_is_the_same_page() -> None:
    chance = luck(1)
    runs = [run(case("test_it", "passed", guest(phases={"ready": chance.random()}))) for _ in range(6)]
    found = [compare(Side("before", tuple(runs[:3])), Side("after", tuple(runs[3:])))]
    assert comparison_page(found) == comparison_page(found)
