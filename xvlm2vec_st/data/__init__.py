"""Parallel corpora: rows, datasets, streams, batches and features."""
