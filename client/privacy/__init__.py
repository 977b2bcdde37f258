"""Sampling, clipping, noise and the ledger: one file for one step of the proof."""
