"""The tables of a search: costs and scores, how they are read and kept, and the solver's problem made of them."""
