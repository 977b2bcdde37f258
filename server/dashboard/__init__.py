"""The coordinator's dashboard: pages and a REST API, in a process of its own, over the registry."""
