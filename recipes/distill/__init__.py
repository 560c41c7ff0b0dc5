"""Distil an English embedder into other languages: `python -m recipes.distill`, or `distill(...)`."""
