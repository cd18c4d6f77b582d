"""Everything inlay raises on purpose: one root, few kinds, each with its exit code.

Every error takes one string, so that it survives the pickling between processes that Ray does.
"""


class InlayError(Exception):
    """A failure that inlay can name: the problem, the value given, and what to do next."""

    exit_code = 1


class UserError(InlayError):
    """The input is wrong; nothing was written."""

    exit_code = 2


class InfeasibleError(InlayError):
    """No architecture of the search space meets the budget; the text says what is reachable."""

    exit_code = 3


class JobFailedError(InlayError):
    """A submitted job ended without a result."""

    exit_code = 4
