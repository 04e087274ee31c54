"""Every way to fail that a user can cause, with the exit status it ends in."""


class FaHarnessError(Exception):
    """An error that the user sees as one message, without a traceback.

    The message names the thing, the reason and the next step.
    """

    exit_status = 1


class UsageError(FaHarnessError):
    """The call was wrong: an unknown name, a case that cannot be, a file that cannot be written."""

    exit_status = 2


class SetupError(FaHarnessError):
    """The environment is: no compiler, no library, no network, a wrong checksum, a full disk."""

    exit_status = 3
