"""Files for the dashboard's User Import, where nothing may be sent by the API.

Source: Braze docs, "CSV import": UTF-8, one header line, at most 500 MB; values in
quotes are text; a blank cell changes nothing and nothing can be removed; no arrays, no
objects, and no double quote within a value.
"""

from __future__ import annotations

import re
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from io import BytesIO
from typing import IO, TYPE_CHECKING

import polars as pl

from currents_ingest.audiences import gathering
from currents_ingest.audiences.braze import facts
from currents_ingest.audiences.cells import NULL
from currents_ingest.audiences.difference import cells_of, latest
from currents_ingest.audiences.gathering import gathered
from currents_ingest.audiences.mapping import ID, PERSON, SEPARATOR
from currents_ingest.errors import GuardError, MappingError, SettingsError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from currents_ingest.audiences.gathering import Gathered, Target
    from currents_ingest.config import Settings

MOST = 500 * 10**6
"""Bytes of a file."""
_ALIAS = ("user_alias_name", "user_alias_label")
_FORMULA = r"^[=@\t\r]|^[+-][^0-9(]|^[+-].*[A-Za-z]"
"""How a spreadsheet's formula begins; a phone or a negative number is none."""
_REASONS = {
    '"': "a value holds a double quote, which the import does not take",
    r"[\r\n]": "a value holds a line break",
    _FORMULA: "a value begins as a spreadsheet's formula does",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What came of it."""

    files: tuple[str, ...]
    people: int
    rejected: int
    reasons: dict[str, int]
    left_out: tuple[str, ...]
    """What the import cannot take."""


def write(
    settings: Settings, target: Target, folder: Path, *, most: int = MOST
) -> Written:
    """Write a whole export, each person once; the last row of a person counts.

    Args:
        settings: For ``limits.memory``.
        target: Whose export; of attributes.
        folder: Where the files go: ``<audience>-00001.csv`` and so on.
        most: Bytes of a file.

    Raises:
        SettingsError: It is no audience of attributes, or a file is there already.
        GuardError: Too many rows are rejected.
    """
    if target.audience.kind != "attributes" or target.audience.operations:
        told = "audience csv is for attributes that are set, without operations"
        raise SettingsError((told,))
    delivery = gathering.find(target, datetime.now(UTC))
    room = settings.limits.memory // 5
    with (
        gathered(target, delivery, room) as found,
        closing(_Files(folder, target.name, most)) as output,
    ):
        if refused := gathering.unbearable(target, found):
            raise GuardError(target.name, refused, "Mend the export or the settings.")
        _check_names(target, found)
        reasons, left_out, people = found.reasons(), dict[str, int](), 0
        for rows in _people(found):
            kept, unfit = _kept(rows)
            _add(left_out, left_out_of(rows))
            _add(reasons, unfit)
            output.add(kept.select(_columns(kept, target.audience.identifier)))
            people += len(kept)
    return Written(
        files=tuple(output.names),
        people=people,
        rejected=sum(reasons.values()),
        reasons=reasons,
        left_out=tuple(f"{name} ({n:,} values)" for name, n in left_out.items() if n),
    )


def _check_names(target: Target, found: Gathered) -> None:
    names = [one.name for one in found.layout.columns] if found.layout else []
    wrong = [one for one in names if re.search(f'{_FORMULA}|["\r\n]', one)]
    if wrong:
        told = ", ".join(map(repr, wrong))
        problem = f"no header of the import may be called {told}: rename it in columns"
        raise MappingError(target.name, (problem,))


def _add(counts: dict[str, int], more: Mapping[str, int]) -> None:
    for name, count in more.items():
        counts[name] = counts.get(name, 0) + count


class _Files:
    """CSV files, each below a size, each with the header."""

    def __init__(self, folder: Path, name: str, most: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._name, self._most = folder, name, most
        self._size = most
        self._out: IO[bytes] = BytesIO()
        self.names: list[str] = []

    def add(self, frame: pl.DataFrame) -> None:
        header = ",".join(map(_quoted, frame.columns)) + "\n"
        lines = frame.select(pl.concat_str(pl.all(), separator=",")).to_series()
        for line in lines:
            body = f"{line}\n".encode()
            if self._size + len(body) > self._most:
                self._next(header.encode())
            self._out.write(body)
            self._size += len(body)

    def close(self) -> None:
        self._out.close()

    def _next(self, header: bytes) -> None:
        self.close()
        path = self._folder / f"{self._name}-{len(self.names) + 1:05}.csv"
        if path.exists():
            raise SettingsError((f"{path} exists already; move it away first",))
        self._out = path.open("xb")
        self.names.append(str(path))
        self._size = self._out.write(header)


def _people(found: Gathered) -> Iterator[pl.DataFrame]:
    for span in found.rows.ranges():
        rows = latest(found.rows.between(span))
        if len(rows):
            yield rows.sort(ID)


def left_out_of(rows: pl.DataFrame) -> dict[str, int]:
    """Count what the import has no way for: arrays, objects, removals."""
    found = {}
    for name in cells_of(rows):
        field = facts().fields.get(name)
        if field and not field.csv:
            found[name] = rows[name].count()
            continue
        nested = rows[name].str.contains(r"^[\[{]").sum()
        found[f"{name}: arrays and objects"] = int(nested)
        found[f"{name}: removals"] = int((rows[name] == NULL).sum())
    return found


def _kept(rows: pl.DataFrame) -> tuple[pl.DataFrame, dict[str, int]]:
    """Return the rows that can be written, and why others cannot."""
    told, kept = {}, rows
    for form, reason in _REASONS.items():
        values = [_text(pl.col(one)) for one in cells_of(rows)] + [pl.col(PERSON)]
        wrong = pl.any_horizontal(
            one.str.contains(form).fill_null(value=False) for one in values
        )
        fit = kept.filter(~wrong)
        if len(fit) < len(kept):
            told[reason] = len(kept) - len(fit)
        kept = fit
    return kept, told


def _columns(rows: pl.DataFrame, identifier: str) -> Sequence[pl.Expr]:
    """Write identifiers and cells as the import reads them."""
    person = pl.col(PERSON)
    if identifier == "user_alias":
        parts = person.str.split_exact(SEPARATOR, 1).struct
        named = [
            _in_quotes(parts.field(f"field_{at}")).alias(name)
            for at, name in enumerate(_ALIAS)
        ]
    else:
        named = [_in_quotes(person).alias(identifier)]
    known = facts().fields
    for name in cells_of(rows):
        cell = pl.col(name)
        if name in known and not known[name].csv:
            continue
        text = cell.str.starts_with('"')
        plain = pl.when(cell.str.contains("^[-0-9tf]")).then(cell)
        value = pl.when(text).then(_in_quotes(_text(cell))).otherwise(plain)
        named.append(value.fill_null("").alias(name))
    return named


def _text(cell: pl.Expr) -> pl.Expr:
    """Return the text of a cell that is a JSON string; null for others."""
    return pl.when(cell.str.starts_with('"')).then(cell).str.json_decode(pl.String)


def _in_quotes(text: pl.Expr) -> pl.Expr:
    return pl.format('"{}"', text)


def _quoted(name: str) -> str:
    return f'"{name}"' if set(name) & set(',"') else name
