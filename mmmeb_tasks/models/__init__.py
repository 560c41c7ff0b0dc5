"""Models that mteb can score on MMMEB: encoders, local folders, baselines."""
