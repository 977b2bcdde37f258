"""From files to a catalog: one file a format, identification and quality checks."""
