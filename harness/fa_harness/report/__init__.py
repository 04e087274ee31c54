"""Reports of one run's results: a file a form."""
