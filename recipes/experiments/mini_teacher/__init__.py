"""Train the English embedder of the mini world."""
