"""Compare losses, corpora and untrained maps: same start, same data order, several seeds, two worlds."""
