"""The coordinator's side: rounds, aggregation, registry."""
