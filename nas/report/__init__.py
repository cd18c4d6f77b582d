"""Figures, tables and pictures of a search."""
