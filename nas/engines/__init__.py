"""What runs a child for its users: one file an engine, the contract in `engine.py`, all of them in `registry.py`."""
