"""Score models on MMMEB and compare them."""
