"""How a child is written for those who run it: one file a format."""
