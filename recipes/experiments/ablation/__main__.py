"""`python -m recipes.experiments.ablation`."""

from ...shared.command import run
from .command import main

if __name__ == "__main__":
    run(main)
