"""Where the theory ends."""

from gradstab.errors import GradstabError


class NoTheory(GradstabError):  # noqa: N818 - it is an answer, not a failure
    """There is no mean-field prediction for what was asked; the message is one line that says why."""
