"""The conversation on the serial line, without a line."""

import base64
import gzip
import re

import pytest

from pytest_kvmlab.drivers import serial_protocol as protocol

TOKEN, NUMBER = "0123456789abcdef", 7
FRAME_OF_BLOCK = f"\r\n:{TOKEN}:b:7:0:24:\r\n%s\r\n:{TOKEN}:e:7:0:24:\r\n"


def block(content: bytes, insert: str = "", at: int = 0) -> bytes:
    text = base64.encodebytes(content).decode().replace("\n", "\r\n")
    return (FRAME_OF_BLOCK % (text[:at] + insert + text[at:])).encode()


def ended(frame: str) -> protocol.Ended | None:
    stream = frame.encode()
    found = protocol.line_pattern(protocol.ended_pattern(TOKEN, NUMBER)).search(stream)
    return protocol.parsed_ended(found) if found else None


def parsed(stream: bytes) -> bytes | None:
    return protocol.parsed_block(stream, TOKEN, NUMBER, 0, 24)


def test_an_escaped_command_is_plain_and_reads_back() -> None:
    command = "".join(map(chr, range(1, 256))) + "é€𝄞"
    text = protocol.escaped(command)
    assert re.fullmatch(r"[ -~]*", text)
    assert not set("'!") & set(text)
    decoded = re.sub(rb"\\0([0-7]{3})", lambda found: bytes([int(found[1], 8)]), text.encode())
    assert decoded.decode() == command


@pytest.mark.parametrize("length", [0, 1, 180, 181, 5000])
def test_request_lines_are_short_harmless_and_complete(length: int) -> None:
    text = "".join(chr(0x61 + number % 26) for number in range(length))
    lines = protocol.run_request(NUMBER, text)
    assert all(line.startswith(b": ") and len(line) < 220 for line in lines)
    assert "".join(re.findall(r"'(.*)'", b"".join(lines).decode())) == text
    assert lines[-1].split()[:4] == [b":", b"r", b"7", b"%d" % length]


def test_no_line_of_the_server_is_too_long_for_a_terminal() -> None:
    command, lines = protocol.loader(TOKEN, "nonce")
    assert max(map(len, [command, *lines])) < 255
    assert sum(map(len, lines)) < 4095
    assert b"noncele" not in command
    assert b"%d" % (sum(map(len, lines)) - 2) in command


def test_the_echo_of_a_probe_is_not_its_answer() -> None:
    assert not re.search(rb":nonce:[0-9a-f]*:[0-9]*:", protocol.probe("nonce"))


def test_the_end_of_a_command_is_read() -> None:
    assert ended(f"\r\n:{TOKEN}:h:7:3:6: 68 69:\r\n") == protocol.Ended(3, b"hi")
    assert ended(f"\r\n:{TOKEN}:h:7::0::\r\n") == protocol.Ended(None, b"")


@pytest.mark.parametrize(
    "frame",
    [
        f"\r\n:{TOKEN}:h:7:3:6: 68 6:\r\n",
        f"\r\n:{TOKEN}:h:7:3:6: 68 6969:\r\n",
        f"\r\n:{TOKEN}:h:7:3:2: 6:\r\n",
        f"\r\n:{TOKEN}:h:8:3:6: 68 69:\r\n",
        f": r 7 40 ':{TOKEN}:h:7:3:6: 68 69:'\r\n",
    ],
)
def test_a_damaged_or_foreign_end_is_not_taken(frame: str) -> None:
    assert ended(frame) is None


def test_what_a_shell_lacks_is_read_once_all_of_it_is_there() -> None:
    frame = f"\r\n:{TOKEN}:od:base64:folder::\r\n".encode()
    pattern = protocol.line_pattern(protocol.taught_pattern(TOKEN))
    whole = frame.index(b"::") + 2
    assert not any(pattern.search(frame[:size]) for size in range(whole))
    found = pattern.search(frame[:whole])
    assert found
    assert protocol.parsed_lacks(found) == ["od", "base64", "folder"]


def test_a_shell_that_lacks_nothing_is_ready() -> None:
    found = protocol.line_pattern(protocol.taught_pattern(TOKEN)).search(f"\n:{TOKEN}:ready:".encode())
    assert found
    assert protocol.parsed_lacks(found) == []


@pytest.mark.parametrize("message", ["[   12.345678] usb 1-1: new\r\n", "\x1b[32m OK \x1b[0m started\r\n"])
@pytest.mark.parametrize("at", [0, 1, 30, 76, 78])
def test_a_kernel_message_in_a_block_is_cut_out(message: str, at: int) -> None:
    content = gzip.compress(bytes(range(256)))
    assert parsed(block(content, message, at)) == bytes(range(256))


@pytest.mark.parametrize("message", ["later\r\n", "abcd", "random: crng init done\r\n"])
def test_a_block_with_something_else_in_it_is_not_taken(message: str) -> None:
    content = gzip.compress(bytes(range(256)))
    assert parsed(block(content)) == bytes(range(256))
    assert parsed(block(content, message, 30)) is None


def test_a_block_never_unpacks_to_more_than_was_asked_for() -> None:
    limit = 24 * protocol.UNIT_BYTES
    assert parsed(block(gzip.compress(bytes(limit)))) == bytes(limit)
    assert parsed(block(gzip.compress(bytes(limit + 1)))) is None


def test_a_block_that_ends_early_is_not_taken() -> None:
    assert parsed(block(gzip.compress(b"content")[:-4])) is None


def test_a_person_sees_what_the_guest_said_and_not_the_protocol() -> None:
    lines = [
        "H4sIAAAAAAAAA61WbW" * 4,
        ":92025d5bf09d63da:e:12:0:24:",
        "#  echo;echo :60f8e3af7fdef593:${_kl_t-}:${_kl_n-}:",
        "",
        "",
        ":42953dcbfaff50a5load:",
        "esac",
        ":92025d5bf09d63da:ready:",
        "# : r 13 5 'dmesg'",
        ":92025d5bf09d63da:b:13:0:24:",
        "H4sIAAAA",
        "[   12.5] a kernel message in the midst of it",
        ":92025d5bf09d63da:e:13:0:24:",
        "[   13.0] Kernel panic - not syncing",
        ":92025d5bf09d63da:h:14:1:134: 6c 73 3a 20 2f 6e 6f 6e 65 78 69 73 74 65 6e 74",
        " 3a 20 4e:",
        r"\x1b[?2004llogin: \x1b[01;31mred\x1b[m",
    ]
    assert protocol.for_people(lines) == ["", lines[11], lines[13], "login: red"]
