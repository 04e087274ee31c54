"""What was found, a form a file."""
