"""`python -m recipes.add_language`."""

from ..shared.command import run
from .command import main

if __name__ == "__main__":
    run(main)
