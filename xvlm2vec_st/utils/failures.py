"""One-line messages for errors that end a command: bad input, and failures of the machine."""

import errno
import pickle
from collections.abc import Iterator

from safetensors import SafetensorError

# What to do about common errors of the operating system.
ADVICE = {
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room in your quota",
    errno.EFBIG: "raise the limit of a file's size (ulimit -f)",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "close other programs: the system has too many files open",
    errno.EACCES: "check its permissions, or choose another place",
    errno.EPERM: "check its permissions, or choose another place",
    errno.EROFS: "choose a place that can be written",
    errno.ENOMEM: "free memory",
}
# How errors about the machine begin: RuntimeErrors and an AssertionError. torch has no separate type for them.
MACHINE_ERRORS = (
    "Torch not compiled with",
    "[enforce fail at inline_container",  # torch.save on a full disk
    "PytorchStreamWriter",
    "basic_ios::clear",
    "unexpected pos",
    "Invalid device string",
    "Expected one of cpu",
    "Found no NVIDIA driver",
    "No CUDA GPUs are available",
    "Attempting to deserialize object on a CUDA device",
    "DataLoader worker",
    "Cannot find any torch accelerator",
)


def reason(error: BaseException) -> str | None:
    """One line for an error that the user can fix; None if it is a bug of the program.

    >>> reason(OSError(errno.ENOSPC, "No space left on device", "/data/out"))
    '/data/out: No space left on device; make room'
    >>> reason(ZeroDivisionError("division by zero")) is None
    True
    """
    line = _line(error)
    return None if line is None else " ".join("; ".join([line, *notes(error)]).split())


def _line(error: BaseException) -> str | None:
    if isinstance(error, UnicodeError):
        return f"a text cannot be read or written: {error}"
    if isinstance(error, ValueError):
        return str(error)
    if isinstance(error, ImportError):
        return f"{error}; install what is missing" if isinstance(error, ModuleNotFoundError) else str(error)
    if is_out_of_memory(error):
        return f"out of memory ({first_line(error)}); lower the batch size, or free memory"
    has_cause = isinstance(error, RuntimeError | OSError | SafetensorError) or is_of_datasets(error)
    for cause in chain(error) if has_cause else ():
        if isinstance(cause, OSError) and cause.errno in ADVICE:
            where = f"{cause.filename}: " if cause.filename else ""
            return f"{where}{cause.strerror}; {ADVICE[cause.errno]}"
    if isinstance(error, OSError):
        return str(error) or type(error).__name__
    if isinstance(error, SafetensorError):
        return f"a file of weights cannot be read or written: {error}"
    if isinstance(error, pickle.UnpicklingError):
        return f"a file holds objects that are not loaded for safety: {first_line(error)}"
    if is_of_datasets(error):
        return f"the rows cannot be stored: {first_line(error.__cause__ or error)}"
    if isinstance(error, RuntimeError | AssertionError) and str(error).startswith(MACHINE_ERRORS):
        return first_line(error)
    return None


def is_of_datasets(error: BaseException) -> bool:
    """Whether datasets could not store its rows. Compares names, because datasets is an optional dependency."""
    return type(error).__name__ == "DatasetGenerationError"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the CPU or a GPU ran out of memory.

    >>> is_out_of_memory(MemoryError()), is_out_of_memory(RuntimeError("CUDA out of memory. Tried …"))
    (True, True)
    """
    text = str(error).lower()
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)
    )


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield the error and its causes."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def notes(error: BaseException) -> list[str]:
    """The notes that were added to the error (`add_note`)."""
    return list(getattr(error, "__notes__", ()))


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type.

    >>> first_line(ValueError())
    'ValueError'
    """
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
