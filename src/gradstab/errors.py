"""Errors meant for the person at the keyboard. Nothing here imports anything."""


class GradstabError(Exception):
    """Something failed that the user can act on; printed as one line, without a traceback."""


class ConfigError(GradstabError, ValueError):
    """A configuration that cannot be run.

    ``problems`` holds one line for each thing that is wrong; every line names the dotted key, the value it has
    and what is allowed.
    """

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class DataError(GradstabError):
    """A data set that is missing, broken, or cannot be downloaded."""


class Interrupted(KeyboardInterrupt):
    """A signal asked the run to end, and it did, in order; ``signal`` is its number (2 for Ctrl-C, 15 for SIGTERM).

    ``note`` is what there is to say of it, in one line.
    """

    def __init__(self, signal: int, note: str = "") -> None:
        super().__init__(signal, note)
        self.signal = signal
        self.note = note

    def __str__(self) -> str:
        return self.note or f"interrupted by signal {self.signal}"
