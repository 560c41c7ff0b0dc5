"""Results that are whole or absent: OUT is checked and locked at the start, and filled in one step.

    OUT.partial.lock      held by the run that writes OUT; the system releases it when the process dies
    OUT.partial           the work; arguments.json in it says whose it is
    OUT.partial/final     the finished result, until it becomes OUT

Needs Python alone, and imports relatively: `mmmeb_tasks.utils.folders` loads it without the package around it.
"""

from .destination import DRAFT, FINAL, MOVING, NOTE, Destination, write_note
from .files import FileDestination
from .locks import is_complete
from .moves import expanded, move_file, remove, whole_file
from .objects import read_object

__all__ = [
    "DRAFT",
    "FINAL",
    "MOVING",
    "NOTE",
    "Destination",
    "FileDestination",
    "expanded",
    "is_complete",
    "move_file",
    "read_object",
    "remove",
    "whole_file",
    "write_note",
]
