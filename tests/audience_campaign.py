"""People who are synced to a sandbox: what tests of audiences share.

Exports whose every cell is known, what the documented rules make of a cell (one at a
time, in plain Python), and the command line as a process.
"""

from __future__ import annotations

import ast
import csv
import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from currents_ingest import config
from currents_ingest.audiences.gathering import Target

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from currents_ingest.config import Settings
    from tests.sandbox_server import Sandbox

KEY = "sesame-0b7e6b1c-key"
KILLED = -9
PATIENCE = 120.0
"""Seconds after which a run counts as hung."""
FIELDS = {
    "email": "email",
    "given_name": "first_name",
    "surname": "last_name",
    "birthdate": "dob",
    "country": "country",
    "gender": "gender",
}
"""Braze's own fields, by their column."""
COLUMNS = (
    "external_id",
    "email",
    "given_name",
    "birthdate",
    "country",
    "gender",
    "Tier",
    "points",
    "ratio",
    "vip",
    "tags",
    "note",
)
_GENDERS = {"f": "F", "Male": "M", "O": "O"}
_COUNTRIES = {"DE": "DE", "fra": "FR", "United States": "US"}
_NAMES = ("Zoë", "Łukasz", "山田", "O'Brien", 'Q "the" Q')
LEAVE = object()
"""A cell that says nothing."""


# What is synced.


def row_of(number: int, version: int = 0) -> list[str]:
    """Return a person's cells; every hundredth person changes with each version."""
    changes = number % 100 == 7
    note = ("", "null", f" spaced, {number} ", f"Grüße \U0001f389 {number}")[number % 4]
    if changes and version and number % 1000 == 107:
        note = "null" if version % 2 else f"back {number}"
    return [
        id_of(number),
        f"person.{number}@example.com",
        _NAMES[number % len(_NAMES)],
        f"19{50 + number % 50}-0{1 + number % 9}-1{number % 10} 00:00:00",
        list(_COUNTRIES)[number % 3],
        list(_GENDERS)[number % 3],
        ("gold", "Silver", "Bronzé", "007")[number % 4],
        str(number * 3 + (1_000_000 * version if changes else 0)),
        f"{number % 97}.50",
        ("TRUE", "false")[number % 2],
        ("['a', 'b']", '["x"]', "", "null")[number % 4],
        note,
    ]


def id_of(number: int) -> str:
    """Return an external id; they sort as their numbers do."""
    return f"C-{number:09}"


def rows(numbers: Iterable[int], version: int = 0) -> Iterator[dict[str, str]]:
    """Yield people as an export has them."""
    for number in numbers:
        yield dict(zip(COLUMNS, row_of(number, version), strict=True))


def write_csv(path: Path, found: Iterable[Mapping[str, str]]) -> None:
    """Write an export, in place of the one before as Amperity does."""
    waiting = iter(found)
    first = next(waiting, dict.fromkeys(COLUMNS, ""))
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(first))
        writer.writeheader()
        if any(first.values()):
            writer.writerow(first)
        writer.writerows(waiting)


# What Braze shall hold, by the documented rules.


def meant(column: str, text: str) -> Any:
    """Return what a cell means: a value, None (remove it) or LEAVE.

    The rules of Braze's CSV Lambda and of Amperity's field map, for one cell.
    """
    bare = text.strip()
    if not bare:
        return LEAVE
    if bare.lower() == "null":
        return None
    if column in FIELDS:
        return _of_field(column, bare)
    return _found_out(text, bare)


def _of_field(column: str, bare: str) -> Any:
    special: dict[str, Callable[[str], str]] = {
        "birthdate": lambda text: text[:10],
        "country": _COUNTRIES.__getitem__,
        "gender": _GENDERS.__getitem__,
        "email": str.lower,
    }
    return special.get(column, str)(bare)


def _found_out(text: str, bare: str) -> Any:
    if re.fullmatch(r"-?(0|[1-9]\d*)", bare):
        return int(bare)
    if re.fullmatch(r"-?(0|[1-9]\d*)\.\d+", bare):
        return float(bare)
    if bare.lower() in {"true", "false"}:
        return bare.lower() == "true"
    if bare.startswith("["):
        return ast.literal_eval(bare)
    return text


def take_in(profiles: dict[str, Any], export: Iterable[Mapping[str, str]]) -> None:
    """Change *profiles* as an export says, cell by cell."""
    for row in export:
        profile = profiles.setdefault(row["external_id"], {})
        for column, text in row.items():
            if column == "external_id" or (value := meant(column, text)) is LEAVE:
                continue
            name = FIELDS.get(column, column)
            if value is None:
                profile.pop(name, None)
            else:
                profile[name] = value


def flat(profile: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a profile of the sandbox holds, without what Braze gave it."""
    own = {"braze_id", "created_at", "external_id", "custom_attributes"}
    fields = {name: one for name, one in profile.items() if name not in own}
    return fields | profile["custom_attributes"]


def held(box: Sandbox) -> dict[str, Any]:
    """Return what the sandbox holds of everyone, by external id."""
    return {name: flat(one) for name, one in box.profiles().items()}


# Where it is synced from.


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A folder with an export, the feeds and the settings."""

    root: Path
    braze: str
    feeds: str = ""
    """Empty: a folder of root."""
    lease: str = "0s"

    @property
    def export(self) -> Path:
        """Return the export of the audience `vips`."""
        return self.root / "export.csv"

    @property
    def kept(self) -> Path:
        """Return the folder of the feeds."""
        return self.root / "feeds"

    @property
    def ours(self) -> Path:
        """Return what is kept of audiences."""
        return self.kept / "_audiences"

    def files(self) -> dict[str, bytes]:
        """Return all objects of the feeds with their bytes."""
        found = sorted(one for one in self.kept.rglob("*") if one.is_file())
        return {str(one.relative_to(self.kept)): one.read_bytes() for one in found}


def write_settings(
    place: Place, *, braze: Mapping[str, Any] | None = None, **audience: Any
) -> Path:
    """Write `currents.toml` with one audience, `vips`."""
    whole = {
        "feeds": {"url": place.feeds or str(place.kept)},
        "ledger": {"lease": place.lease},
        "braze": {
            "url": place.braze,
            "rate": "100000/1s",
            "concurrency": 8,
            "timeout": "10s",
            **(braze or {}),
        },
        "audiences": {
            "vips": {"source": str(place.export), "settle": "0s", **audience}
        },
    }
    path = place.root / "currents.toml"
    path.write_text("".join(f"{n} = {toml(one)}\n" for n, one in whole.items()))
    return path


def toml(value: Any) -> str:
    """Write a value as TOML, on one line."""
    if isinstance(value, dict):
        pairs = (f"{json.dumps(name)} = {toml(one)}" for name, one in value.items())
        return f"{{ {', '.join(pairs)} }}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(toml, value))}]"
    return json.dumps(value, ensure_ascii=False)


def chosen(
    place: Place, *, braze: Mapping[str, Any] | None = None, **audience: Any
) -> tuple[Settings, Target]:
    """Write the settings and read them back, for calls within this process."""
    read = config.read_audiences(write_settings(place, braze=braze, **audience))
    return read, Target("vips", read.audiences["vips"])


# The command line.


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command went."""

    status: int
    stdout: str
    stderr: str

    @property
    def told(self) -> dict[str, Any]:
        """Return what it printed with --json."""
        found: dict[str, Any] = json.loads(self.stdout)
        return found


def start(place: Place, *arguments: str, **more: str) -> subprocess.Popen[str]:
    """Start `currents-ingest ARGUMENTS`, which writes to files; *more* are variables.

    What it writes goes to files, so that nobody has to read a pipe while it works.
    """
    named = {"BRAZE_API_KEY": KEY, "COLUMNS": "200", **more}
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("CURRENTS_")
    }
    stdout = tempfile.TemporaryFile("w+", dir=place.root)  # noqa: SIM115 (end)
    stderr = tempfile.TemporaryFile("w+", dir=place.root)  # noqa: SIM115 (end)
    process = subprocess.Popen(
        [sys.executable, "-m", "currents_ingest", *arguments],
        cwd=place.root,
        env={
            **environment,
            **named,
            "PYTHONPATH": str(Path(__file__).parents[1]),
        },
        stdout=stdout,
        stderr=stderr,
        text=True,
    )
    process.stdout, process.stderr = stdout, stderr
    return process


def end(process: subprocess.Popen[str]) -> Ended:
    """Wait for a command, and return how it went."""
    try:
        status = process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise AssertionError("it hangs") from None
    assert process.stdout
    assert process.stderr
    with process.stdout as out, process.stderr as err:
        out.seek(0)
        err.seek(0)
        return Ended(status, out.read(), err.read())


def run(place: Place, *arguments: str, **more: str) -> Ended:
    """Run a command to its end."""
    return end(start(place, *arguments, **more))
