"""A hospital's PACS: studies come from it, by DIMSE or DICOMweb, and results go back to it."""
