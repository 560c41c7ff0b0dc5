"""What `bench_versions` compares two versions of the source on."""
