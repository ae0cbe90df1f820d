"""The image debian-12-mariadb: a database that other machines reach, once somebody has said its password."""

import pytest

from pytest_kvmlab import CommandResult, Guest

pytestmark = [pytest.mark.kvm(image="debian-12-mariadb"), pytest.mark.timeout(1800)]

PORT = 3306


def query(guest: Guest, sql: str, *, user: str = "wiki", identified_by: str = "") -> CommandResult:
    """Ask over TCP, as another machine would."""
    client = f"mariadb --host=127.0.0.1 --user={user} --batch --skip-column-names wiki"
    return guest.run(f"MYSQL_PWD={identified_by} {client} <<'END'\n{sql}\nEND")


def test_its_port_greets_other_machines(shared_guest: Guest) -> None:
    shared_guest.wait_for_unit("mariadb.service")
    with shared_guest.connect(PORT) as connection:
        connection.settimeout(60)
        assert b"MariaDB" in connection.recv(4096)


@pytest.mark.parametrize("password", ["", "invalid"])
def test_without_a_password_of_its_own_the_user_is_locked_out(shared_guest: Guest, password: str) -> None:
    assert "Access denied" in query(shared_guest, "SELECT 1", identified_by=password).stderr


def test_with_one_it_has_a_database(shared_guest: Guest) -> None:
    shared_guest.succeed("mariadb <<'END'\nALTER USER wiki@'%' IDENTIFIED BY 'chosen'\nEND")
    sql = "CREATE TABLE t (n INT); INSERT INTO t VALUES (40), (2); SELECT SUM(n) FROM t; DROP TABLE t"
    assert query(shared_guest, sql, identified_by="chosen").stdout == "42\n"


def test_root_is_let_in_by_the_socket_only(shared_guest: Guest) -> None:
    assert shared_guest.succeed("mariadb -BN --execute='SELECT CURRENT_USER()'") == "root@localhost\n"
    assert "Access denied" in query(shared_guest, "SELECT 1", user="root").stderr
