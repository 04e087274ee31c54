"""What is computed: cases, their inputs, suites, and how a call selects them. No C."""
