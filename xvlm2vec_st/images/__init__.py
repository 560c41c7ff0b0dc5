"""Open, find and identify images."""
