"""Everything that patches mteb: tasks, benchmarks, models and `mteb run`."""
