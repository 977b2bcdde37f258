"""Attacks on the training itself: what an attacker can learn, measured, beside what the accounting claims."""
