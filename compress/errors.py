"""Errors meant for people: what happened, where, which rule, and what to do next.

Every error that a user can cause is a `CompressError`. The command line prints it without a traceback and exits with
its `exit_code`; from Python it is an ordinary exception. Anything else that escapes is a bug of ours.

Each names its kind by a code, such as `E-DATA-CLASSES`: one cause and one remedy, explained in `ERRORS.md`, which
`compress explain CODE` prints. Within this package every error is given its code where it is made. The errors of a
plugin need none: they have that of their class, `E-PLUGIN` and the like.
"""

from difflib import get_close_matches


class CompressError(Exception):
    """A failure that the user can understand and act on. `hint` is the next thing to try, often a command.

    `code` is a section of `ERRORS.md`; without one, that of the class, which is for plugins. `excerpt` is the place in
    a file that the error is about, as lines to print below the message; `subject` the word that the error is about, by
    which that place may be found.
    """

    exit_code = 1
    plugin_code = "E-PLUGIN"

    def __init__(self, message: str, *, code: str = "", hint: str = ""):
        super().__init__(message)
        self.message = message
        self.code = code or self.plugin_code
        self.hint = hint
        self.excerpt = ""
        self.subject = ""

    def __str__(self) -> str:
        return f"{self.message}\n  hint: {self.hint}" if self.hint else self.message


class UsageError(CompressError):
    """A flag, key, name or value that the rules do not allow."""

    exit_code = 2
    plugin_code = "E-PLUGIN-USAGE"


class Unmeasurable(CompressError):
    """A measurement that was needed is missing or not valid."""

    exit_code = 4
    plugin_code = "E-PLUGIN-MEASUREMENT"


class InputRejected(CompressError):
    """A file or folder that breaks its contract: unreadable, malformed, unsafe or inconsistent."""

    exit_code = 5
    plugin_code = "E-PLUGIN-INPUT"


class TrainingDiverged(CompressError):
    """A loss or weight stopped being finite."""


def nearest_to(name: str, allowed: list[str]) -> str:
    """The one of `allowed` that was probably meant, or nothing."""
    near = get_close_matches(name.lower(), [a.lower() for a in allowed], n=1, cutoff=0.5)
    return next((a for a in allowed if near and a.lower() == near[0]), "")


def unknown(what: str, name: str, allowed: list[str], *, where: str = "", code: str = "E-NAME-UNKNOWN") -> UsageError:
    """The error for an unknown name: it lists what there is and offers the nearest."""
    nearest = nearest_to(name, allowed)
    place = f" in {where}" if where else ""
    listing = ", ".join(allowed) if allowed else "none"
    hint = f"did you mean `{nearest}`?" if nearest else ""
    error = UsageError(f"unknown {what} `{name}`{place}; there are: {listing}", code=code, hint=hint)
    error.subject = name
    return error
