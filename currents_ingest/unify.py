"""Rows of a raw feed to rows of a unified one: pure expressions from its contract."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import polars as pl

from currents_ingest import amperity
from currents_ingest.amperity import COLUMN_TYPES
from currents_ingest.conform import FILE, POLARS_TYPES, REASON, ROW, guarded
from currents_ingest.contracts import UNMAPPED
from currents_ingest.hashing import numbers, sha256
from currents_ingest.privacy import REDACTED

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from currents_ingest.privacy import Choice
    from currents_ingest.unified import Source, Test, UnifiedColumn, UnifiedContract

_MEMBER, _TIME = "is of the feed", "time of event"
_GIVEN = "given for "
_AT_FILE, _AT_ROW = "file of row", "row of file"
"""Columns while at work: names that no contract may have."""
_LOOKED_UP = ("subscription_group_id", "app_group_id", "from_domain")
_NO, _YES = pl.lit(value=False), pl.lit(value=True)
_NULL = pl.lit(None)
_TIES = 500_000
"""Microseconds that tell states of one second apart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decided:
    """What the user decided about one feed."""

    brand: str
    """Where no name fits."""
    brands: Mapping[str, str] = field(default_factory=dict)
    """By subscription group, app group or sending domain, in lower case."""
    region: str | None = None
    regions: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, str] = field(default_factory=dict)
    privacy: Mapping[str, Choice] = field(default_factory=dict)
    """By field; those not named are kept."""


@dataclass(frozen=True, slots=True)
class Unified:
    """What became of the rows: rows + rejects + passed_over + superseded."""

    rows: pl.DataFrame
    """Contract columns; in the order of the rows, or by key for a table of states."""
    rejects: pl.DataFrame
    """Columns ``currents_file``, ``currents_row``, ``reason``."""
    passed_over: int
    """Rows that the contract does not ask for."""
    superseded: int
    """States that a newer one of the same key replaces."""
    span: tuple[Any, Any]
    """First and last event time of the rows."""


def unify(
    rows: pl.DataFrame,
    contract: UnifiedContract,
    sources: Sequence[Source],
    decided: Decided,
) -> Unified:
    """Turn rows of one event type into those of a unified feed.

    Args:
        rows: As ``conform`` gives them, each event once.
        contract: The unified feed's contract.
        sources: Those of its sources that are the event type's, in order.
        decided: What the user decided about the feed.
    """
    compiled = _Compiler(rows, contract, decided, sources)
    whole = (
        rows.lazy()
        .select(*compiled.columns())
        .with_columns(_reason(contract).alias(REASON))
        .collect()
    )
    members = whole if whole[_MEMBER].all() else whole.filter(_MEMBER)
    good, bad = members, members.head(0)
    if members[REASON].null_count() < members.height:
        good = members.filter(pl.col(REASON).is_null())
        bad = members.filter(pl.col(REASON).is_not_null())
    names = list(contract.types)
    kept = good.select(names)
    if contract.latest:
        kept = newest(kept, contract)
    return Unified(
        rows=kept,
        rejects=bad.select(
            pl.col(_AT_FILE).alias(FILE), pl.col(_AT_ROW).alias(ROW), REASON
        ),
        passed_over=rows.height - members.height,
        superseded=good.height - kept.height,
        span=(good[_TIME].min(), good[_TIME].max()),
    )


def newest(rows: pl.DataFrame, contract: UnifiedContract) -> pl.DataFrame:
    """Keep the newest row of each key, by key.

    Of rows that are equally new (one in half a million of those of one second) always
    the same one: the other columns decide.
    """
    others = [one for one in contract.types if one != contract.last_updated]
    return (
        rows.sort(contract.last_updated, *others)
        .unique(list(contract.key), keep="last", maintain_order=True)
        .sort(list(contract.key))
    )


class _Compiler:
    """Builds the expressions for rows of one event type."""

    def __init__(
        self,
        rows: pl.DataFrame,
        contract: UnifiedContract,
        decided: Decided,
        sources: Sequence[Source],
    ) -> None:
        self._types = rows.schema
        self._contract, self._decided = contract, decided
        self._sources = sources
        more = rows[UNMAPPED].null_count() < rows.height
        self._elsewhere = pl.col(UNMAPPED).str if more else None
        self._masks = list(self._masked())

    def columns(self) -> Iterator[pl.Expr]:
        """Return every column of the contract and those that are for us."""
        for column in self._contract.columns:
            yield self._value(column).alias(column.name)
            if column.pick and column.type != "string":
                found = self._origin(column)
                yield (_NULL if found is None else found).alias(_GIVEN + column.name)
        member = pl.any_horizontal(self._masks) if self._masks else _NO
        yield member.alias(_MEMBER)
        yield pl.col(FILE).alias(_AT_FILE)
        yield pl.col(ROW).alias(_AT_ROW)
        yield pl.col("event_datetime").alias(_TIME)

    def _masked(self) -> Iterator[pl.Expr]:
        """Return where each source's tests hold."""
        for source in self._sources:
            wanted = [self._test(test) for test in source.when]
            unwanted = [self._test(test) for test in source.unless]
            mask = pl.any_horizontal(wanted) if wanted else _YES
            yield mask & ~pl.any_horizontal(unwanted) if unwanted else mask

    def _test(self, test: Test) -> pl.Expr:
        return pl.all_horizontal(
            [self._holds(name, texts) for name, texts in test.items()]
        )

    def _holds(self, name: str, texts: Sequence[str]) -> pl.Expr:
        wanted = [text.lower() for text in texts]
        if name.startswith("@") and name[1:] in self._contract.options:
            option = self._contract.options[name[1:]]
            decided = self._decided.options.get(name[1:], option.default)
            return pl.lit(decided.lower() in wanted)
        value = self._raw(name)
        if value is None:
            return pl.lit("" in wanted)
        text = value.cast(pl.String).str.to_lowercase()
        given = text.is_not_null() & (text != "")
        hits = text.is_in([one for one in wanted if one not in ("", "*")])
        hits = hits.fill_null(value=False)
        if "*" in wanted:
            hits |= given
        return hits | ~given if "" in wanted else hits

    def _value(self, column: UnifiedColumn) -> pl.Expr:
        """Return the constant that the source sets, else what the fields give."""
        kind = POLARS_TYPES[COLUMN_TYPES[column.type]]
        found = self._origin(column)
        text = column.pick is not None or self._elsewhere is not None
        value = _NULL if found is None else _typed(found, column, text=text)
        if column.constant is not None:
            value = pl.coalesce(value, pl.lit(column.constant))
        base = value = value.cast(kind)
        if any(column.name in source.set for source in self._sources):
            # The first source whose tests hold counts, so the last one is asked first.
            for source, mask in reversed(
                [*zip(self._sources, self._masks, strict=True)]
            ):
                constant = source.set.get(column.name)
                own = base if constant is None else pl.lit(constant, kind)
                value = pl.when(mask).then(own).otherwise(value)
        return value

    def _origin(self, column: UnifiedColumn) -> pl.Expr | None:
        """Return what the fields give, as text where the column works on text."""
        if column.which:
            given = (
                (self._given((name,)), text) for name, text in column.which.items()
            )
            found = [
                pl.when(one.is_not_null()).then(pl.lit(text)).otherwise(None)
                for one, text in given
                if one is not None
            ]
        else:
            found = [one for one in map(self._given, column.sources) if one is not None]
        if not found:
            return None
        works_on_text = (
            column.pick or column.trim or column.lower or column.values or column.sha256
        )
        if works_on_text or len(found) > 1:
            text = works_on_text or column.type == "string"
            kind = pl.String if text else POLARS_TYPES[COLUMN_TYPES[column.type]]
            found = [one.cast(kind, strict=False) for one in found]
        return _worked(pl.coalesce(found), column)

    def _given(self, choice: Sequence[str]) -> pl.Expr | None:
        """Return one field, or several joined; null where a text is empty."""
        fields = [one for one in map(self._field, choice) if one is not None]
        if len(fields) < len(choice):
            return None
        if len(fields) > 1:
            texts = (not_empty(one.cast(pl.String)) for one in fields)
            return pl.concat_str(*texts, separator=":")
        is_text = self._types.get(choice[0], pl.String) == pl.String
        return not_empty(fields[0]) if is_text and choice[0][0] != "@" else fields[0]

    def _field(self, name: str) -> pl.Expr | None:
        """Return a field's values as the user's choice leaves them."""
        if name.startswith("@"):
            return self._made(name)
        value = self._raw(name)
        if value is None:
            return None
        return guarded(value, self._decided.privacy.get(name, "keep"))

    def _made(self, name: str) -> pl.Expr:
        """Return what no field holds; see UnifiedColumn."""
        match name:
            case "@brand":
                return self._looked_up(self._decided.brands, self._decided.brand)
            case "@region":
                return self._looked_up(self._decided.regions, self._decided.region)
            case "@send_day":
                return self._send_day()
            case "@event_name":
                return pl.col("currents_event_type").str.split(".").list.last()
        return self._state_order()

    def _send_day(self) -> pl.Expr:
        """Return the day of what was sent: an open or click tells it, or is it."""
        event, sent = pl.col("event_datetime"), self._raw("send_time")
        if sent is not None:
            seconds = sent.cast(pl.Int64, strict=False) * 1_000_000
            when = seconds.cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
            event = pl.coalesce(when, event)
        return event.dt.strftime("%Y%m%d")

    def _raw(self, name: str) -> pl.Expr | None:
        """Return a field's values, from unmapped_fields if it has no column."""
        if name in self._types:
            return pl.col(name)
        if self._elsewhere is None:
            return None
        return self._elsewhere.json_path_match(f"$.{name}")

    def _looked_up(self, names: Mapping[str, str], default: str | None) -> pl.Expr:
        fields = [self._raw(name) for name in _LOOKED_UP] if names else []
        found = [
            _mapped(one.str.to_lowercase(), names) for one in fields if one is not None
        ]
        return pl.coalesce(*found, pl.lit(default, pl.String))

    def _state_order(self) -> pl.Expr:
        """Return the event's second, and below it what tells states of it apart."""
        columns = {column.name: column for column in self._contract.columns}
        preferred = [
            self._value(columns[name]).eq_missing(pl.lit(value))
            for name, value in self._contract.prefer.items()
        ]
        first = pl.all_horizontal(preferred) if preferred else _NO
        ties = numbers(pl.col("id"), _TIES)
        below = ties + pl.when(first).then(_TIES).otherwise(0)
        return pl.col("event_datetime").dt.truncate("1s") + pl.duration(
            microseconds=below
        )


def _reason(contract: UnifiedContract) -> pl.Expr:
    """Say why a row of the contract's columns cannot be delivered; null if it can."""
    reasons = []
    for column in contract.columns:
        missing = pl.col(column.name).is_null()
        if column.pick and column.type != "string":
            kind = amperity.NAMES[COLUMN_TYPES[column.type]]
            lost = missing & pl.col(_GIVEN + column.name).is_not_null()
            told = pl.lit(f"{column.name} does not fit the type {kind}")
            reasons.append(pl.when(lost).then(told))
        if column.required:
            told = pl.lit(f"{column.name} is missing")
            reasons.append(pl.when(missing).then(told))
    return pl.coalesce(*reasons, pl.lit(None, pl.String))


def _worked(value: pl.Expr, column: UnifiedColumn) -> pl.Expr:
    """Apply what the column asks for, in the order that UnifiedColumn names."""
    if column.pick:
        value = value.str.json_path_match(column.pick)
    if column.trim:
        value = not_empty(value.str.strip_chars())
    if column.lower:
        value = value.str.to_lowercase()
    if column.values:
        value = _mapped(value, column.values)
    if column.sha256:
        value = sha256(value)
    return value


def _typed(value: pl.Expr, column: UnifiedColumn, *, text: bool) -> pl.Expr:
    """Cast a value to the column's type; what does not fit becomes null.

    Args:
        value: What the fields gave.
        column: The column.
        text: It may be text, for it comes from JSON.
    """
    if column.unit:
        micros = {"s": 1_000_000, "ms": 1_000}[column.unit]
        epoch = value.cast(pl.Int64, strict=False) * micros
        return epoch.cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
    if column.type == "boolean" and text:
        return _mapped(value.cast(pl.String), {"true": True, "false": False})
    if column.type == "string":
        return not_empty(value.cast(pl.String))
    return value.cast(POLARS_TYPES[COLUMN_TYPES[column.type]], strict=False)


def _mapped(value: pl.Expr, names: Mapping[str, Any]) -> pl.Expr:
    kind = pl.Series(list(names.values())).dtype
    return value.replace_strict(
        list(names), list(names.values()), default=None, return_dtype=kind
    )


def not_empty(text: pl.Expr) -> pl.Expr:
    """Make null of what says nothing: '', and what a connector put in its place."""
    return pl.when((text != "") & (text != REDACTED)).then(text)
