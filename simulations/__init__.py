"""Whole federations on one machine: the demo, phantoms, grids that need no network."""
