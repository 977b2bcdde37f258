"""One file a task: targets, loss, metrics. `TASKS` in `registry.py` is the table."""
