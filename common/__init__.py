"""What the coordinator and the sites must agree on; imports neither side."""
