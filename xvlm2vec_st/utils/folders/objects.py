"""JSON files that hold one object, read or refused by name."""

import json
from pathlib import Path
from typing import Any


def read_object(path: str | Path, advice: str) -> dict[str, Any]:
    """The JSON object that a file holds.

    Args:
        path: of the file.
        advice: what to do if it holds something else.

    Raises:
        ValueError: it is not UTF-8, not JSON, or not an object. The message names the file.
        OSError: it is missing or cannot be opened.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "run.json"
    >>> _ = file.write_text('{"beams": 4}')
    >>> read_object(file, "delete it")
    {'beams': 4}
    """
    try:
        value = json.loads(Path(path).read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        reason = str(error) if isinstance(error, ValueError) else "nested too deeply"
        raise ValueError(f"{path} cannot be read ({reason}); {advice}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} cannot be read (a {type(value).__name__}, not a JSON object); {advice}")
    return value
