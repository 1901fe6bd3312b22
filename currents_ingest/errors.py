"""Every error of ours, grouped by what to do next: stop, set aside, try again.

Each says what happened, what it left behind and what to do. Arguments go to
``super().__init__`` positionally, so that an error survives a process boundary.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


class CurrentsError(Exception):
    """Anything this package raises on purpose."""

    def told(self) -> str:
        """Return the message and where it happened, on one line."""
        notes = getattr(self, "__notes__", ())
        return " ".join([str(self), *(f"[{note}]" for note in notes)])


class FatalError(CurrentsError):
    """Stop: nothing more can be done until a person acts."""


class SkippableError(CurrentsError):
    """Set the object in hand aside and go on with the next."""


class RetryableError(CurrentsError):
    """Nothing is wrong with the data; the same command may succeed later."""


class SettingsError(FatalError):
    """The configuration cannot be used; lists every problem found."""

    def __init__(self, problems: tuple[str, ...]) -> None:
        super().__init__(problems)
        self.problems = problems

    def __str__(self) -> str:
        return "the configuration cannot be used:\n" + "\n".join(
            f"  - {problem}" for problem in self.problems
        )


class CorruptObjectError(SkippableError):
    """A file's bytes are not what the Avro specification says they must be."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return self.reason


class HeaderCutError(CorruptObjectError):
    """The bytes at hand end before a file's header does."""


class ForeignKeyError(SkippableError):
    """A key is not that of a Currents file."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return self.reason


class BreakingDriftError(SkippableError):
    """A writer schema cannot be read into the feed's contract."""

    def __init__(self, feed: str, differences: tuple[str, ...]) -> None:
        super().__init__(feed, differences)
        self.feed, self.differences = feed, differences

    def __str__(self) -> str:
        return (
            f"the file's schema breaks the contract of {self.feed}: "
            + "; ".join(self.differences)
            + ". Nothing of the file was delivered"
        )


class StoreError(RetryableError):
    """A bucket refused or failed to answer, after every retry."""

    def __init__(self, action: str, where: str, cause: str) -> None:
        super().__init__(action, where, cause)
        self.action, self.where, self.cause = action, where, cause

    def __str__(self) -> str:
        return (
            f"could not {self.action} {self.where}: {self.cause}. "
            "Nothing was committed by this step; check credentials, permissions and "
            "network, then run the same command again."
        )


class RefusedError(StoreError):
    """A bucket does not let us in: credentials, permissions, or its name."""


class NotThereError(SkippableError):
    """An object is not (or no longer) in the bucket."""

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key

    def __str__(self) -> str:
        return f"there is no object {self.key}"


class ChangedError(SkippableError):
    """An object was written again between its listing and its reading."""

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key

    def __str__(self) -> str:
        return f"{self.key} changed after it was listed; the next listing finds it anew"


class NoRoomError(SkippableError):
    """A file's turn comes with the next run, for those before it took all room."""

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key

    def __str__(self) -> str:
        return (
            f"{self.key} is compressed, and its batch unpacks to more than is held at "
            "once; the next run takes it"
        )


class AlreadyThereError(SkippableError):
    """An object that had to be new exists."""

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key

    def __str__(self) -> str:
        return f"{self.key} exists already"


class AmperityError(RetryableError):
    """Amperity's API refused or failed to answer, after every retry."""

    def __init__(self, action: str, cause: str) -> None:
        super().__init__(action, cause)
        self.action, self.cause = action, cause

    def __str__(self) -> str:
        return (
            f"could not {self.action}: {self.cause}. What was delivered stays; the "
            "next poll tries again."
        )


class ExportError(FatalError):
    """An export cannot be read, or is not what it was said to be."""

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(where, reason)
        self.where, self.reason = where, reason

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}. Nothing was sent to Braze."


class MappingError(FatalError):
    """An export's columns do not fit what its audience says; lists every problem."""

    def __init__(self, audience: str, problems: tuple[str, ...]) -> None:
        super().__init__(audience, problems)
        self.audience, self.problems = audience, problems

    def __str__(self) -> str:
        told = "".join(f"\n  - {problem}" for problem in self.problems)
        return f"the export does not fit {self.audience}; nothing was sent:{told}"


class GuardError(FatalError):
    """An export looks wrong as a whole, so nothing was sent."""

    def __init__(self, audience: str, reason: str, way_out: str) -> None:
        super().__init__(audience, reason, way_out)
        self.audience, self.reason, self.way_out = audience, reason, way_out

    def __str__(self) -> str:
        return f"{self.audience}: {self.reason}. Nothing was sent. {self.way_out}"


class BrazeRefusedError(FatalError):
    """Braze will not take anything from us, or is not Braze; a person must act."""

    def __init__(self, status: int, what_to_do: str) -> None:
        super().__init__(status, what_to_do)
        self.status, self.what_to_do = status, what_to_do

    def __str__(self) -> str:
        said = f"Braze answered {self.status}" if self.status else "nothing was sent"
        return (
            f"{said}: {self.what_to_do}. What Braze acknowledged before is recorded; "
            "run the same command again when that is mended."
        )


class BrazeDownError(RetryableError):
    """Braze did not answer, or only with errors, for longer than we wait."""

    def __init__(self, cause: str) -> None:
        super().__init__(cause)
        self.cause = cause

    def __str__(self) -> str:
        return (
            f"Braze does not answer ({self.cause}). What it acknowledged is recorded; "
            "run the same command again and it goes on from there."
        )


class ExportNotReadyError(RetryableError):
    """An export is not there yet, or still being written."""

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(where, reason)
        self.where, self.reason = where, reason

    def __str__(self) -> str:
        return (
            f"{self.where}: {self.reason}. Nothing was sent to Braze; run the same "
            "command again later."
        )


class TooLittleTimeError(FatalError):
    """Invocations end before they have done anything."""

    def __init__(self, task: str, times: int) -> None:
        super().__init__(task, times)
        self.task, self.times = task, times

    def __str__(self) -> str:
        return (
            f"{self.task}: {self.times} invocations in a row ended without having done "
            "anything, so there is no other. Give the function more time or memory, or "
            "make CURRENTS_LAMBDA_RESERVE shorter; the next event goes on."
        )


class LedgerConflictError(RetryableError):
    """Another process created the ledger entry that we were about to create."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number

    def __str__(self) -> str:
        return (
            f"another process committed ledger entry {self.number} first; "
            "nothing of ours was published. Run the same command again."
        )


class EngineError(RetryableError):
    """The cluster that does the work cannot do it."""

    def __init__(self, action: str, cause: str) -> None:
        super().__init__(action, cause)
        self.action, self.cause = action, cause

    def __str__(self) -> str:
        return (
            f"could not {self.action}: {self.cause}. What was committed stays, nothing "
            "else counts; mend the cluster, then run the same command again."
        )


class WorkLostError(RetryableError):
    """A step was done again, and what was held against its first result is stale."""

    def __str__(self) -> str:
        return (
            "a worker was lost, and what it had done came out otherwise the second "
            "time; nothing of it was published. Run the same command again."
        )


class CheckpointGoneError(FatalError):
    """Part of what the ledger was folded into is not there any more."""

    def __init__(self, folder: str) -> None:
        super().__init__(folder)
        self.folder = folder

    def __str__(self) -> str:
        return (
            f"objects of the checkpoints in {self.folder} are gone. Nothing was "
            "changed, and nothing is lost, for the ledger's entries hold the same: "
            "remove all of _ledger/checkpoints/ (nothing else of _ledger/) and the "
            "cache, and run again; they are made anew."
        )


class LedgerBrokenError(FatalError):
    """The ledger in the bucket cannot be understood."""

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(key, reason)
        self.key, self.reason = key, reason

    def __str__(self) -> str:
        return (
            f"the ledger object {self.key} cannot be used: {self.reason}. Nothing was "
            "changed. Restore it from a backup or an older object version; do not "
            "delete it, for it is what keeps events from being delivered twice."
        )


class CacheBrokenError(RetryableError):
    """The cache file was damaged while it was in use."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.path = path

    def __str__(self) -> str:
        return (
            f"the cache {self.path} was damaged and has been removed. What was "
            "committed stays, and nothing is lost: run the same command again."
        )


class LeaseHeldError(RetryableError):
    """Another process is at work on these feeds."""

    def __init__(self, holder: str, since: str, expires: str) -> None:
        super().__init__(holder, since, expires)
        self.holder, self.since, self.expires = holder, since, expires

    def __str__(self) -> str:
        return (
            f"{self.holder} has been at work on these feeds since {self.since} "
            f"(its lease runs until {self.expires} unless renewed). Nothing was done; "
            "run again when it has finished."
        )


class LeaseLostError(RetryableError):
    """We were paused or cut off past our lease; someone else may be at work."""

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.seconds = seconds

    def __str__(self) -> str:
        return (
            f"our lease on these feeds was not renewed for {self.seconds:.0f} s, so "
            "another process may be at work. The batches in hand were not committed; "
            "run the same command again."
        )


@contextmanager
def located(where: str) -> Iterator[None]:
    """Note *where* on any of our errors raised inside the block."""
    try:
        yield
    except CurrentsError as error:
        error.add_note(f"in {where}")
        raise
