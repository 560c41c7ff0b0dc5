"""Malformed inputs from a seed: bytes and JSON values that are changed, and calls that are watched."""

import copy
import random
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

LIMIT = 10.0  # seconds an input; the slowest takes a twentieth on an idle CPU

TEXTS = (
    "",
    " ",
    "\0",
    "\u200b",
    "\ud83d",
    "a\udc00b",
    "\x1b[2J\x1b]0;owned\x07",
    "../../../etc/passwd",
    "/etc/passwd",
    "http://127.0.0.1:9/a.png",
    "file:///etc/passwd",
    "all.zip::../x.png",
    "n" * 300,
    "~",
    "C:\\x",
    "a\nb",
    "<image>",
    "<|image_1|>\n",
    "{x}",
    "%s",
    "犬",
    "🐕",
    "\u202egnp.exe",
    "=1+1",
    "dog.png",
    ".",
)
VALUES = (
    None,
    True,
    False,
    0,
    -1,
    10**30,
    0.5,
    float("nan"),
    float("inf"),
    [],
    {},
    ["a"],
    [None],
    {"a": 1},
    [[["a"]]],
    {"path": "x.png", "bytes": None},
    *TEXTS,
)
PIECES = (
    b"\0",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"\x1f\x8b",
    b"PK\x03\x04",
    b'"',
    b"{",
    b"[" * 3000,
    b"}",
    b",",
    b"\n",
    b"\r",
    b"\t",
    b"\\ud800",
    b"\\",
    b"9" * 5000,
    b"-",
    b"\xe9",
    b"NaN",
    b"<!ENTITY a 'b'>",
    b"&a;",
    b"<hi>" * 3000,
    b'encoding="x"',
)


class HangError(BaseException):
    """An input took longer than the limit; nothing catches it by accident."""


def changed_bytes(rng: random.Random, data: bytes) -> bytes:
    """A file with one to three changes: cut, flipped, repeated, removed or inserted bytes."""
    found = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        place, length = rng.randrange(len(found) + 1), rng.choice((1, 2, 4, 16, 64))
        match rng.randrange(6):
            case 0:
                del found[place:]
            case 1 if place < len(found):
                found[place] ^= 1 << rng.randrange(8)
            case 2:
                found[place:place] = found[place : place + length]
            case 3:
                del found[place : place + length]
            case 4 if place < len(found):
                found[place : place + 4] = rng.choice((b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\0\0\0"))
            case _:
                found[place:place] = rng.choice(PIECES)
    return bytes(found)


def changed_value(rng: random.Random, value: Any) -> Any:
    """A JSON value with one to three parts replaced, removed, added or renamed."""
    root = [copy.deepcopy(value)]
    for _ in range(rng.randint(1, 3)):
        where: Any = root
        key: Any = 0
        while isinstance(where[key], dict | list) and where[key] and rng.random() < 0.85:
            where = where[key]
            key = rng.choice(list(where)) if isinstance(where, dict) else rng.randrange(len(where))
        match rng.randrange(5):
            case 0 if isinstance(where, dict):
                del where[key]
            case 1 if isinstance(where, dict):
                where[rng.choice(TEXTS)] = where.pop(key)
            case 2 if isinstance(where, list) and where is not root:
                where.append(rng.choice(VALUES))
            case _:
                where[key] = copy.deepcopy(rng.choice(VALUES))
        if not isinstance(root[0], dict | list):
            break
    return root[0]


def changed_words(rng: random.Random, options: Sequence[str]) -> list[str]:
    """A command line of some options and values, known and unknown."""
    numbers = ("nan", "inf", "-inf", "-1", "0", "1e20", "1e-400", "1" * 5000, "0x10", "1_0", "٣", "")
    words: list[str] = []
    for _ in range(rng.randint(0, 8)):
        words.append(rng.choice((*options, "--no", "-x", "--", rng.choice(TEXTS))))
        words += [rng.choice((*numbers, *TEXTS, "it", "auto")) for _ in range(rng.choice((0, 1, 1, 1, 2)))]
    return words


def watched(call: Callable[[], object], place: str | Sequence[str]) -> bool:
    """Make a call that ends in time: in a result, in argparse's line, or in a ValueError that names a place.

    Returns:
        Whether it was refused.

    Raises:
        AssertionError: another exception; a message without a place, or with what a terminal acts on.
        HangError: it did not end.
    """

    def stop(*_: object) -> None:
        raise HangError(f"more than {LIMIT} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, LIMIT)
    try:
        call()
    except ValueError as error:
        message = str(error)
        assert type(error).__name__ != "UnicodeEncodeError" and any(
            name in message for name in ([place] if isinstance(place, str) else place)
        ), f"no place in {type(error).__name__}: {message[:300]}"
        assert not set(message) & {"\x1b", "\x07", "\0"}, f"a terminal acts on {message[:300]!r}"
        return True
    except SystemExit as error:
        assert error.code in (0, 1, 2)
        return bool(error.code)
    except Exception as error:
        raise AssertionError(f"{type(error).__name__}: {str(error)[:300]}") from error
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    return False


def leftovers(folder: Path, known: set[str]) -> list[str]:
    """Names of hidden and half-written files under a folder."""
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*"))
    return [
        name
        for name in names
        if name not in known and (Path(name).name.startswith(".") or ".part" in name or "incomplete" in name)
    ]
