"""What other engines are given: a room for each."""
