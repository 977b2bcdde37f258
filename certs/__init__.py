"""The federation's authority and the startup kits (code only; never a key)."""
