"""Add languages to an embedder."""
