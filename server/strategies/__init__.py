"""One file a strategy. `STRATEGIES` in `registry.py` is the table."""
