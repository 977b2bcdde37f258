"""Every error that a person can cause or mend, in one tree.

    WardroundError            exit 1   something failed; the message says what and what to do
    |- UsageError             exit 2   a wrong argument, file, key or value
    |  |- NotFoundError       exit 2   there is nothing of this name
    |  |- JobError            exit 2   the job file
    |  `- KitError            exit 2   a kit, key or certificate
    |- DataError              exit 3   a folder, label file, catalog or collection
    |- LinkError              exit 4   the other side can't be reached or does not accept this side
    |  `- SignInError         exit 4   ... because it does not know who asks
    |     `- SlowDownError    exit 4   ... and has been asked too often
    |- RefusedError           exit 5   the site's policy or ledger says no
    |  |- WaitingError        exit 5   ... or not yet: a person must approve, or the hour is wrong
    |  `- ForbiddenError      exit 5   this person's role, or this token's scope, does not allow it
    |- UpdateError            exit 6   an update or a checkpoint that does not fit
    `- RunError               exit 7   a run that failed or can't go on

A message is one line: what is wrong, where, and what to do. Commands print it and exit with the class' code; a
traceback means a defect of this project.
"""

from __future__ import annotations


class WardroundError(Exception):
    """Something failed. The message is one line for a person: what, where, and what to do."""

    exit_code = 1


class UsageError(WardroundError):
    """A wrong argument, file, key or value."""

    exit_code = 2


class NotFoundError(UsageError):
    """There is nothing of this name."""


class JobError(UsageError):
    """A job file that can't be used."""


class KitError(UsageError):
    """A kit, key or certificate that can't be used."""


class DataError(WardroundError):
    """A folder, label file, catalog or collection that can't be used."""

    exit_code = 3


class LinkError(WardroundError):
    """The other side can't be reached, or does not accept this side."""

    exit_code = 4


class SignInError(LinkError):
    """The other side does not know who asks: a wrong password or token, or a session that has ended."""


class SlowDownError(SignInError):
    """Too many failed tries to sign in. `wait` is how many seconds it takes until the next is looked at."""

    def __init__(self, message: str, wait: int) -> None:
        super().__init__(message)
        self.wait = wait


class RefusedError(WardroundError):
    """The site's policy or ledger says no."""

    exit_code = 5


class WaitingError(RefusedError):
    """The site says not yet: a person must approve, or the hour is wrong. Ask again later."""


class ForbiddenError(RefusedError):
    """The person's role, or the token's scope, does not allow it."""


class UpdateError(WardroundError):
    """An update or checkpoint whose names, shapes, dtypes or values do not fit."""

    exit_code = 6


class RunError(WardroundError):
    """A run that failed or can't go on."""

    exit_code = 7
