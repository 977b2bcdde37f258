"""The hospital's page: what is indexed, what jobs want, what was spent, what left; for the data steward."""
