r"""How a command gets through a serial line: the text of both sides, without any input or output.

A serial line shows one stream: echo, prompt, the command's output, kernel messages in the midst of it. So
nothing is read off the screen. The guest's shell (POSIX sh: ash, dash, bash) is taught a small server,
`serial_server.sh`, which reads requests with its own `read`. A request costs 2 ms on an emulated machine
where busybox's line editor costs 23, and prompts, bracketed paste, line wrap and history are out of the game.

Requests are short lines. All begin with `: `, so that a shell that is not serving ignores them::

    : r NUMBER LENGTH 'TEXT'  run it once, or say again how it ended; with + for 'TEXT': what `a` collected
    : e NUMBER LENGTH 'TEXT'  the same in a copy of this shell, which takes less time than a shell of its own
    : a NUMBER OFFSET 'TEXT'  collect a part of a long command
    : g NUMBER                say again how it ended
    : b NUMBER SKIP COUNT     send COUNT units of the output
    : p NONCE                 are you there, and what ran last?
    : x                       remove the output
    : q                       leave: the prompt comes back

Answers are frames on lines of their own, each beginning with the session's random token. The line brings them
piece by piece, so each shows its end: no part of one is taken for the whole::

    :TOKEN:ready:                       the server is taught, and nothing is missing
    :TOKEN:NAME:NAME::                  the shell lacks what these say
    :TOKEN:h:NUMBER:STATUS:LENGTH:HEX:  how it ended (no STATUS: interrupted), and the output's head
    :TOKEN:b:NUMBER:SKIP:COUNT:         a block of the output follows, in base64 of gzip,
    :TOKEN:e:NUMBER:SKIP:COUNT:         and ends
    :TOKEN:l:NUMBER:                    the text arrived damaged, send it again
    :TOKEN:p:NONCE:NUMBER:              alive; NUMBER ran last

TEXT carries quotes, backslashes and everything unprintable as `\0ooo`. The command runs in a shell of its own
with nothing on standard input; both outputs go to one file in a private folder, so that a background job, a
binary or a terminal code cannot disturb the line. The file is sent when the command has ended: a short one
with the head (each process costs an emulated guest 5 to 10 ms), a long one in blocks, until one is not full.

Whatever else prints on the line inserts text. A kernel message in the midst of a frame is cut out if it can
be told apart; if not, the head's length or gzip's checksum does not fit and that part is asked for again, a
block in ever smaller pieces. The command itself runs once: the guest remembers its number.
"""

import base64
import binascii
import hashlib
import re
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources
from typing import Literal

_FRAME = re.compile(r":[0-9a-f]{16}:?(load|[a-z]+|):")
# Requests and their echo, the server being taught, the rest of a frame whose beginning is no longer there.
_NOISE = re.compile(r"(.*# )?: [reagbpxq]( .*)?|.*kl_.*|( ?[0-9a-f]{2}){8,}:?|[A-Za-z0-9+/]{60,}={0,2}")
_PAYLOAD = re.compile(r"[A-Za-z0-9+/]*={0,2}|( ?[0-9a-f]{2})*:?")
# Colours, bracketed paste, the cursor's place (ECMA-48, 5.4), as a log shows them.
_TERMINAL_CODE = re.compile(r"\\x1b\[[0-?]*[ -/]*[@-~]")
HEAD_BYTES = 2048
UNIT_BYTES = 4096
BLOCK_UNITS = 24
LINE_CHARS = 180
# Linux keeps at most 4095 bytes that a program has not read yet: termios(3), "canonical mode".
SYNC_AFTER_LINES = 8

_PLAIN = frozenset(map(chr, range(0x20, 0x7F))) - set("'\\!")
_FOREIGN = re.compile(rb"[^A-Za-z0-9+/=: \r\n][^\n]*(?:\n|\Z)")
_ZLIB_GZIP = 31  # zlib.decompressobj: a gzip header, the largest window


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        exit_status: what the shell reported, None if the command was interrupted.
        head: the first bytes of the output; all of it if there are less than `HEAD_BYTES`.
    """

    exit_status: int | None
    head: bytes

    @property
    def complete(self) -> bool:
        """Whether the head is all of the output."""
        return len(self.head) < HEAD_BYTES


def for_people(lines: Iterable[str]) -> list[str]:
    """Leave out what this protocol and terminal codes put on the line: a person looks for what was said.

    Args:
        lines: lines of the console, made printable; the first may be in the midst of a frame.

    Returns:
        The others, kernel messages in the midst of a frame included; of several empty lines, the first.
    """
    shown: list[str] = []
    frame = ""
    for line in (_TERMINAL_CODE.sub("", line) for line in lines):
        if begun := _FRAME.match(line):
            frame = begun[1]
        elif not (
            frame == "load" or _NOISE.fullmatch(line) or (frame in ("b", "h") and _PAYLOAD.fullmatch(line))
        ):
            shown += [line] if line or shown[-1:] != [""] else []
    return shown


def escaped(command: str) -> str:
    r"""Write a command in printable characters that no shell touches between single quotes.

    Args:
        command: any text but NUL.

    Returns:
        The text with `'`, `\`, `!` and every byte outside printable ASCII as `\0ooo`, for `printf %b`.
    """
    return "".join(
        char
        if char in _PLAIN
        else "".join(f"\\0{byte:03o}" for byte in char.encode("utf-8", "surrogateescape"))
        for char in command
    )


def run_request(number: int, text: str, verb: Literal["r", "e"] = "r") -> list[bytes]:
    """Write the lines that make the server run a command.

    Args:
        number: the command's number in this session; running a number twice runs it once.
        text: the command, `escaped`.
        verb: how it is run.

    Returns:
        One line if the text is short, else its parts and the line that runs them.
    """
    if len(text) <= LINE_CHARS:
        return [f": {verb} {number} {len(text)} '{text}'\n".encode()]
    offsets = range(0, len(text), LINE_CHARS)
    parts = [f": a {number} {at} '{text[at : at + LINE_CHARS]}'\n".encode() for at in offsets]
    return [*parts, f": {verb} {number} {len(text)} +\n".encode()]


def probe(nonce: str) -> bytes:
    """Write the lines that are answered by whoever reads them: a shell's prompt, or our server.

    Args:
        nonce: letters and digits that no other probe carries.

    Returns:
        Two lines, of which a shell ignores one and the server the other.
    """
    return f" echo;echo :{nonce}:${{_kl_t-}}:${{_kl_n-}}:\n: p {nonce}\n".encode()


def loader(token: str, nonce: str) -> tuple[bytes, list[bytes]]:
    """Write what teaches a shell the server.

    Args:
        token: the new session's random name.
        nonce: what the shell prints when it is ready to read the server's text.

    Returns:
        The line to type at the prompt, and the lines to send once the nonce has appeared.
    """
    server = _server_text().splitlines()
    code = [line.strip() for line in server if line.strip() and not line.strip().startswith("#")]
    lines = [f"_kl_t={token} _kl_h={HEAD_BYTES} _kl_u={UNIT_BYTES}", *code]
    size = sum(len(line) + 1 for line in lines)
    command = (
        rf""" echo;echo :{nonce}''load:;_kl_c=;_kl_w=$(printf '\n.');while IFS= read -r _kl_l;do """
        rf"""[ "$_kl_l" != . ]||break;_kl_c=$_kl_c$_kl_l${{_kl_w%.}};done;"""
        rf"""[ ${{#_kl_c}} != {size} ]||eval "$_kl_c" """
    )
    return f"{command}\n".encode(), [f"{line}\n".encode() for line in [*lines, "."]]


def server_identity() -> str:
    """The SHA-256 of the server's text: a server that was taught from another may speak otherwise."""
    return hashlib.sha256(_server_text().encode()).hexdigest()


def _server_text() -> str:
    return resources.files(__package__).joinpath("serial_server.sh").read_text("utf-8")


def cleaned(stream: bytes) -> bytes:
    """Cut out what cannot belong to a frame: from the first foreign character to the end of its line.

    A kernel message begins with `[`, a coloured one with an escape code; both end with a newline. So a
    message that was printed into the midst of a frame's line disappears and the line is whole again.

    Args:
        stream: what came from the guest.

    Returns:
        The stream without what is foreign.
    """
    return _FOREIGN.sub(b"", stream)


def line_pattern(frame: str) -> re.Pattern[bytes]:
    """Find a frame where frames stand: at the beginning of a line, unlike the echo of a request's text."""
    return re.compile(rf"(?:\A|\n)(?:{frame})".encode(), re.DOTALL)


def taught_pattern(token: str) -> str:
    """The regular expression of the frame that says whether a shell can serve; for `parsed_lacks`."""
    return rf":{token}:(?:ready|(?P<lacks>(?:[a-z0-9]+:)+)):"


def parsed_lacks(found: re.Match[bytes]) -> list[str]:
    """What a shell lacks to be able to serve, read from a match of `taught_pattern`."""
    return (found["lacks"] or b"").decode().split(":")[:-1]


def ended_pattern(token: str, number: int) -> str:
    """The regular expression of the frame that tells how a command ended; `parsed_ended` reads its match."""
    return rf":{token}:h:{number}:(?P<status>\d*):(?P<length>\d+):(?P<hex>[0-9a-f\s]*):"


def parsed_ended(found: re.Match[bytes]) -> Ended | None:
    """Read a match of `ended_pattern`; None if it arrived damaged."""
    status, text = found["status"], found["hex"].replace(b"\r", b"")
    if len(text) != int(found["length"]):
        return None
    try:
        return Ended(int(status) if status else None, bytes.fromhex(text.decode()))
    except ValueError:
        return None


def block_end(token: str, number: int, skip: int, count: int) -> str:
    """The frame that closes a block."""
    return f":{token}:e:{number}:{skip}:{count}:"


def parsed_block(stream: bytes, token: str, number: int, skip: int, count: int) -> bytes | None:
    """Find a block of output in a stream.

    Args:
        stream: what came from the guest since the block was asked for.
        token: the session.
        number: the command's number.
        skip: the block's first unit.
        count: how many units it has.

    Returns:
        Its bytes, or None if it is not there or damaged beyond repair.
    """
    end = block_end(token, number, skip, count)
    pattern = line_pattern(f":{token}:b:{number}:{skip}:{count}:(.*?){end}")
    for text in (stream, cleaned(stream)):
        found = pattern.search(text)
        if found and (data := _unpacked(b"".join(found[1].split()), count * UNIT_BYTES)) is not None:
            return data
    return None


def _unpacked(text: bytes, limit: int) -> bytes | None:
    """Undo base64 and gzip, never to more bytes than were asked for."""
    unpacker = zlib.decompressobj(_ZLIB_GZIP)
    try:
        data = unpacker.decompress(base64.b64decode(text, validate=True), limit + 1)
    except (binascii.Error, zlib.error):
        return None
    return data if unpacker.eof and len(data) <= limit else None
