"""`python -m recipes.experiments.mini_teacher`."""

from ...shared.command import run
from .command import main

if __name__ == "__main__":
    run(main)
