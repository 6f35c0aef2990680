"""Errors meant for people: what happened, where, which rule, and what to do next.

Every error that a user can cause is a `CompressError`. The command line prints it without a traceback and exits with
its `exit_code`; from Python it is an ordinary exception. Anything else that escapes is a bug of ours.
"""

from difflib import get_close_matches


class CompressError(Exception):
    """A failure that the user can understand and act on. `hint` is the next thing to try, often a command."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str = ""):
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  hint: {self.hint}" if self.hint else self.message


class UsageError(CompressError):
    """A flag, key, name or value that the rules do not allow."""

    exit_code = 2


class Unmeasurable(CompressError):
    """A measurement that was needed is missing or not valid."""

    exit_code = 4


class InputRejected(CompressError):
    """A file or folder that breaks its contract: unreadable, malformed, unsafe or inconsistent."""

    exit_code = 5


class TrainingDiverged(CompressError):
    """A loss or weight stopped being finite."""


def unknown(what: str, name: str, allowed: list[str], *, where: str = "") -> UsageError:
    """The error for an unknown name: it lists what there is and offers the nearest."""
    near = get_close_matches(name.lower(), [a.lower() for a in allowed], n=1, cutoff=0.5)
    nearest = next((a for a in allowed if near and a.lower() == near[0]), None)
    place = f" in {where}" if where else ""
    listing = ", ".join(allowed) if allowed else "none"
    hint = f"did you mean `{nearest}`?" if nearest else ""
    return UsageError(f"unknown {what} `{name}`{place}; there are: {listing}", hint=hint)
