"""From English rows to a parallel corpus."""
