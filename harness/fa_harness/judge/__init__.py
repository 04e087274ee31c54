"""What is right: the oracle, bounds, the contract, and verdicts. No C."""
