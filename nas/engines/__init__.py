"""Engines that run a child: one folder an engine, with what it needs and what it cannot run."""
