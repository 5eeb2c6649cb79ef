"""What is kept of the first value that was not finite, and what can be told from it."""
