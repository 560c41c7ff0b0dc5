"""No test reaches the network: a connection that leaves this machine is refused and noted.

Python's own sockets are watched, in every Python that a test starts with its environment; programs and
libraries that make connections without Python are not.
"""

import ipaddress
import os
import sys
from pathlib import Path

LOG = "XVLM2VEC_NETWORK_LOG"  # a file that takes the names of what was asked for
# Events of Python's audit hooks (docs.python.org/3/library/audit_events.html) -> where their
# arguments hold the address.
EVENTS = {
    "socket.connect": 1,
    "socket.sendto": 1,
    "socket.sendmsg": 1,
    "socket.getaddrinfo": 0,
    "socket.gethostbyname": 0,
    "socket.gethostbyaddr": 0,
    "socket.getnameinfo": 0,
}


class NetworkError(OSError):
    """What a connection ends in."""


def host_of(event: str, arguments: tuple) -> str | None:
    """The other machine that an event asks for; None if there is none.

    >>> host_of("socket.connect", (None, ("127.0.0.1", 80)))
    >>> host_of("socket.connect", (None, ("192.0.2.1", 53)))
    '192.0.2.1'
    """
    if event not in EVENTS:
        return None
    address = arguments[EVENTS[event]]
    of_a_socket = EVENTS[event] == 1
    if of_a_socket and not isinstance(address, tuple):  # a socket in the file system, or connected before
        return None
    host = address[0] if isinstance(address, tuple) else address
    if isinstance(host, bytes):
        host = host.decode(errors="replace")
    return None if not isinstance(host, str) or is_here(host) else host


def is_here(host: str) -> bool:
    """Whether a name or an address is this machine's own.

    >>> is_here("localhost"), is_here("::1"), is_here("127.0.0.1.example.org"), is_here("::10")
    (True, True, False, False)
    """
    if host in ("", "localhost"):
        return True
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    address = getattr(address, "ipv4_mapped", None) or address
    return address.is_loopback or address.is_unspecified


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
