"""What the coordinator's dashboard and the hospital's page share: frame, tables, charts, live updates, serving."""
