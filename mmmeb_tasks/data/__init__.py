"""The published files: layout, download and check."""
