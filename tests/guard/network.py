"""No test reaches the network: a connection that leaves this machine is refused and noted."""

import os
import sys
from pathlib import Path

LOG = "XVLM2VEC_NETWORK_LOG"  # a file that takes the names of what was asked for
HERE = ("localhost", "127.", "::1", "0.0.0.0", "")
# Events of Python's audit hooks (docs.python.org/3/library/audit_events.html) -> where the host stands.
EVENTS = {
    "socket.connect": 1,
    "socket.sendto": 1,
    "socket.sendmsg": 1,
    "socket.getaddrinfo": 0,
    "socket.gethostbyname": 0,
}


class NetworkError(OSError):
    """What a connection ends in."""


def host_of(event: str, arguments: tuple) -> str | None:
    """The host that an event asks for, or None where it stays on this machine.

    >>> host_of("socket.connect", (None, ("127.0.0.1", 80)))
    >>> host_of("socket.connect", (None, ("192.0.2.1", 53)))
    '192.0.2.1'
    """
    if event not in EVENTS:
        return None
    address = arguments[EVENTS[event]]
    host = address[0] if isinstance(address, tuple) else address
    if isinstance(host, bytes):
        host = host.decode(errors="replace")
    if not isinstance(host, str) or host.startswith("/"):  # a socket in the file system, or none
        return None
    return None if host == "" or host.startswith(tuple(filter(None, HERE))) else host


def hook(event: str, arguments: tuple) -> None:
    """Refuse and note."""
    host = host_of(event, arguments)
    if host is None:
        return
    if log := os.environ.get(LOG):
        with Path(log).open("a", encoding="utf-8") as file:
            file.write(f"{event} {host}\n")
    raise NetworkError(f"a test asked for {host}")


def install() -> None:
    """From now on, in this process; Python has no way back."""
    sys.addaudithook(hook)
