"""The table of contents: a run, its stages one file each, the plan, and what is done with a finished search."""
