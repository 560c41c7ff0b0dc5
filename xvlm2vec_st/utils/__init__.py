"""Helpers without a model: texts, lines, messages, output folders."""
