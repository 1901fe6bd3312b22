"""What a load has done so far: files, rows, bytes and their pace."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from rich.progress import (
    FileSizeColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TransferSpeedColumn,
)

if TYPE_CHECKING:
    from types import TracebackType

    from rich.console import Console

    from currents_ingest.pipeline import Committed


class Bar:
    """Grows with each commit.

    It knows no end: to list a large bucket only to count it takes as long as a part of
    the load, and ``--dry-run`` does it for who wants to know.
    """

    def __init__(self, console: Console) -> None:
        self._done, self._rows = 0, 0
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            FileSizeColumn(),
            TransferSpeedColumn(),
            TimeElapsedColumn(),
            console=console,
        )
        self._task = self._progress.add_task(self._text(), total=None)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def advance(self, committed: Committed) -> None:
        """Count one commit."""
        if committed.entry is None:
            return
        inputs = [one for batch in committed.entry.batches for one in batch.inputs]
        self._done += len(inputs) + len(committed.entry.set_aside)
        self._rows += sum(one.rows for one in inputs)
        size = sum(one.size for one in (*inputs, *committed.entry.set_aside))
        self._progress.update(self._task, advance=size, description=self._text())

    def _text(self) -> str:
        return f"{self._done:,} files, {self._rows:,} rows"
