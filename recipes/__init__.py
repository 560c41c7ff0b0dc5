"""Recipes: what people run."""
