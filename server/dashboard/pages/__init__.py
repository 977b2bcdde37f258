"""The coordinator's pages: one file a page, all listed in `routes`."""
