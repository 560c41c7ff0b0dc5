"""From English rows to a parallel corpus: sources, fields, translators, memory, repair, checks, report."""
