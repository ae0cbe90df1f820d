"""The image debian-12-wiki, with a database of its own. `fixtures/wiki` has it with one in another guest."""

import json
from http.cookiejar import CookieJar
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import HTTPCookieProcessor, OpenerDirector, build_opener

import pytest

from pytest_kvmlab import Guest

pytestmark = [pytest.mark.kvm(image="debian-12-wiki"), pytest.mark.timeout(1800)]

PORT, SECONDS = 80, 300
SECRETS = "/var/lib/kvmlab-wiki/wiki.json /var/lib/kvmlab-wiki/admin-password"


def api(guest: Guest, browser: OpenerDirector, **form: str) -> Any:
    data = urlencode({"format": "json", **form}).encode()
    with browser.open(guest.url(PORT, "/api.php"), data, timeout=SECONDS) as answer:
        return json.load(answer)


@pytest.fixture
def browser() -> OpenerDirector:
    return build_opener(HTTPCookieProcessor(CookieJar()))


def test_the_main_page_comes_under_the_address_that_was_asked(
    shared_guest: Guest, browser: OpenerDirector
) -> None:
    with browser.open(shared_guest.url(PORT), timeout=SECONDS) as page:
        assert page.url == shared_guest.url(PORT, "/index.php/Main_Page")
        assert "MediaWiki has been installed" in page.read().decode()


def test_it_is_up_once_its_first_page_was_asked_for(shared_guest: Guest) -> None:
    shared_guest.wait_for_unit("apache2.service")
    assert '"GET /index.php/Main_Page HTTP/1.1" 200' in shared_guest.succeed(
        "head -1 /var/log/apache2/other_vhosts_access.log"
    )
    assert shared_guest.testinfra.service("kvmlab-wiki").is_running


def test_what_a_visitor_saves_is_shown(shared_guest: Guest, browser: OpenerDirector) -> None:
    saved = api(shared_guest, browser, action="edit", title="Opening hours", text="Always.", token="+\\")  # noqa: S106  MediaWiki's for strangers
    assert saved["edit"]["result"] == "Success"
    with browser.open(shared_guest.url(PORT, "/index.php/Opening_hours"), timeout=SECONDS) as page:
        assert "Always." in page.read().decode()


def test_the_administrator_has_the_password_that_was_made(
    shared_guest: Guest, browser: OpenerDirector
) -> None:
    tokens = api(shared_guest, browser, action="query", meta="tokens", type="login")
    answer = api(
        shared_guest,
        browser,
        action="clientlogin",
        username="Admin",
        password=shared_guest.succeed("cat /var/lib/kvmlab-wiki/admin-password").strip(),
        logintoken=tokens["query"]["tokens"]["logintoken"],
        loginreturnurl=shared_guest.url(PORT),
    )
    assert answer["clientlogin"]["status"] == "PASS"


def test_its_secrets_are_its_own(shared_guest: Guest) -> None:
    assert shared_guest.succeed(f"stat -c '%U %a' {SECRETS}") == "www-data 600\nroot 600\n"
    own = json.loads(shared_guest.succeed("cat /var/lib/kvmlab-wiki/wiki.json"))
    assert len(own["wgSecretKey"]) == 64


@pytest.mark.parametrize("path", ["/maintenance/", "/mw-config/index.php", "/cache/", "//includes/Setup.php"])
def test_what_is_not_for_visitors_is_denied(shared_guest: Guest, browser: OpenerDirector, path: str) -> None:
    with pytest.raises(HTTPError) as refused:
        browser.open(f"{shared_guest.url(PORT).rstrip('/')}{path}", timeout=SECONDS)
    with refused.value:
        assert refused.value.code == 403


def test_a_wrong_description_of_a_database_is_named(shared_guest: Guest, browser: OpenerDirector) -> None:
    database = "/etc/kvmlab-wiki/database"
    shared_guest.succeed(f"""mkdir -p /etc/kvmlab-wiki && echo '{{"host": "db"}}' >{database}""")
    shared_guest.fail("systemctl restart kvmlab-wiki", timeout=SECONDS)
    assert f"{database} should be" in shared_guest.succeed("journalctl --unit=kvmlab-wiki --no-pager")
    shared_guest.succeed(f"rm {database} && systemctl restart apache2", timeout=SECONDS)
    with browser.open(shared_guest.url(PORT), timeout=SECONDS) as page:
        assert page.status == 200
