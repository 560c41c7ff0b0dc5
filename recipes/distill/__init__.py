"""Distil an English embedder into other languages."""
