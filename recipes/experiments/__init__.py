"""Benchmarks of speed and memory, the mini teacher, and a text embedder in six languages."""
