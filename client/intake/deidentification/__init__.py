"""De-identification on the way in, by the profiles of PS3.15 Annex E."""
