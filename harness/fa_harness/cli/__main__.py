"""`python -m fa_harness.cli`."""

from fa_harness.cli.main import main

main()
