"""Packages that the search needs beyond the library's own."""

from importlib.util import find_spec


def require(package: str, extra: str) -> None:
    """Refuse to go on without a package, before anything is loaded.

    Raises:
        ValueError: the package is missing; says what to install.

    >>> require("json", "search")
    """
    if find_spec(package) is None:
        raise ValueError(f'{package} is not installed; pip install "xvlm2vec-st[{extra}]"')
