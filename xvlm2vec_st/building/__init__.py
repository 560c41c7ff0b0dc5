"""From an LVLM checkpoint, with or without an adapter, to a sentence-transformers folder."""
