"""Add languages to an embedder: `python -m recipes.add_language`."""
