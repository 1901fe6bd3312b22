"""Kills by the hundred while people are synced to a sandbox with faults.

    python -m tests.audience_campaign --people 1000000 --kills 100 --seed 1
                                      [--faults 0.02] [--kind attributes|events|inc]

Syncs an export, killing the process with SIGKILL at random moments, some right after
the sandbox took more, until as many kills were had as asked for and a run has ended.
Then all that the sandbox holds is compared with what the export says, computed one cell
at a time in plain Python; then 1 % changes, and it is done again. Ends with status 1 if
anything differs.

Beside it, what tests of audiences share: exports whose every cell is known, what the
documented rules make of a cell, and the command line as a process.
"""

from __future__ import annotations

import argparse
import ast
import csv
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import pytest

from currents_ingest import cli, config
from currents_ingest.audiences import sync
from currents_ingest.audiences.gathering import Target
from tests.sandbox_server import sandbox

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


def variables(more: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that a command gets."""
    return {"BRAZE_API_KEY": KEY, "COLUMNS": "200", **more}


def start(place: Place, *arguments: str, **more: str) -> subprocess.Popen[str]:
    """Start `currents-ingest ARGUMENTS`, which writes to files; *more* are variables.

    What it writes goes to files, so that nobody has to read a pipe while it works.
    """
    named = variables(more)
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


def inside(place: Place, *arguments: str, **more: str) -> Ended:
    """Run a command to its end in this process, which takes no second to start."""
    told, said = StringIO(), StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        redirect_stdout(told),
        redirect_stderr(said),
    ):
        for name in [one for one in os.environ if one.startswith("CURRENTS_")]:
            patch.delenv(name)
        for name, value in variables(more).items():
            patch.setenv(name, value)
        patch.chdir(place.root)
        patch.setattr(sys, "argv", ["currents-ingest", *arguments])
        status = cli._run()  # noqa: SLF001 (main would end this process)
    return Ended(status, told.getvalue(), said.getvalue())


# The campaign.

EVENTS = {"kind": "events", "dedupe": "nr"}
INCREMENTS = {"operations": {"gained": "inc"}}
_BLIND, _LONGEST = 0.3, 5.0
"""Share of kills at any moment of a run, and the seconds within which they come."""


@dataclass(slots=True)
class Phase:
    """One export, synced under kills."""

    kills: int = 0
    starts: int = 0
    accepted: int = 0
    """Objects that the sandbox accepted in it."""
    seconds: float = 0.0


def sync_under_kills(place: Place, box: Sandbox, kills: int, rng: Random) -> Phase:
    """Sync until a run ends by itself, after as many kills as can be had."""
    phase, since, before = Phase(), time.monotonic(), box.objects()
    each = max(1, 2 * lines_of(place) // max(1, kills))
    while True:
        process = start(place, "audience", "sync", "vips", "--json")
        phase.starts += 1
        if phase.kills < kills:
            wait_for_a_moment(process, box, rng, each)
            process.kill()
        ended = end(process)
        phase.kills += ended.status == KILLED
        if ended.status == 0:
            break
        assert ended.status in {1, KILLED}, ended.stderr
    phase.accepted = box.objects() - before
    phase.seconds = time.monotonic() - since
    return phase


def wait_for_a_moment(
    process: subprocess.Popen[str], box: Sandbox, rng: Random, most: int
) -> None:
    """Wait until the process should be killed: mostly after it sent some more."""
    if rng.random() < _BLIND:
        with suppress(subprocess.TimeoutExpired):
            process.wait(rng.uniform(0.2, _LONGEST))
        return
    aim = box.taken() + rng.randint(1, most)
    while process.poll() is None and box.taken() < aim:
        time.sleep(0.01)


def lines_of(place: Place) -> int:
    """Return how many rows the export has."""
    with place.export.open("rb") as file:
        return sum(1 for _ in file) - 1


def write_things(place: Place, kind: str, count: int, version: int) -> None:
    """Write the export of a kind; 1 % of people differ from version to version."""
    numbers = range(count)
    if kind == "attributes":
        write_csv(place.export, rows(numbers, version))
    elif kind == "inc":
        amounts = ({"external_id": id_of(one), "gained": "5"} for one in numbers)
        write_csv(place.export, amounts)
    else:
        happened = (
            {
                "external_id": id_of(one % 5000),
                "name": "visited",
                "time": "2026-09-01T10:00:00Z",
                "nr": str(one),
                "n": str(one),
            }
            for one in numbers
        )
        write_csv(place.export, happened)


def wrong_people(box: Sandbox, count: int, version: int) -> int:
    """Compare every profile with what the exports up to *version* say of it."""
    wrong, following = 0, 0
    for line in box.lines("profiles"):
        number = int(line["external_id"].removeprefix("C-"))
        wrong += number - following
        following = number + 1
        expected: dict[str, Any] = {}
        for one in range(version + 1 if number % 100 == 7 else 1):
            take_in(expected, rows([number], one))
        wrong += expected[line["external_id"]] != flat(line)
    return wrong + count - following


def wrong_once(place: Place, box: Sandbox, kind: str, count: int) -> tuple[int, int]:
    """Compare what must arrive once at most; returns differences, and how many did.

    What did not arrive must be among the unknown.
    """
    settings = config.read_audiences(place.root / "currents.toml")
    target = Target("vips", settings.audiences["vips"])
    unknown = sum(sync.undecided(settings, target).values())
    if kind == "events":
        arrived = Counter(one["properties"]["n"] for one in box.lines("events"))
        twice = sum(times > 1 for times in arrived.values())
        once = len(arrived)
    else:
        found = [flat(one).get("gained", 0) for one in box.lines("profiles")]
        twice = sum(one not in {0, 5} for one in found)
        once = sum(one == 5 for one in found)
    return twice + max(0, count - once - unknown), once


def main() -> int:
    """Run the campaign; returns the exit status."""
    parser = argparse.ArgumentParser(description="Kill syncs and compare.")
    parser.add_argument("--people", type=int, default=1_000_000)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--faults", type=float, default=0.02)
    parser.add_argument(
        "--kind", choices=("attributes", "events", "inc"), default="attributes"
    )
    given = parser.parse_args()
    rng = Random(given.seed)
    with (
        tempfile.TemporaryDirectory() as folder,
        sandbox(faults=given.faults, seed=given.seed, hang=6, delay=0) as box,
    ):
        place = Place(root=Path(folder), braze=box.url)
        audience = {"events": EVENTS, "inc": INCREMENTS}.get(given.kind, {})
        write_settings(place, braze={"timeout": "3s"}, **audience)
        if given.kind == "attributes":
            return campaign_of_people(place, box, given, rng)
        write_things(place, given.kind, given.people, 0)
        phase = sync_under_kills(place, box, given.kills, rng)
        wrong, once = wrong_once(place, box, given.kind, given.people)
        say(f"{given.kind}: {phase}; {once:,} arrived; {wrong} differences")
        say(f"faults given: {box.state()['faults']}")
        return int(wrong > 0)


def campaign_of_people(
    place: Place, box: Sandbox, given: argparse.Namespace, rng: Random
) -> int:
    """Sync people three times: under kills, 1 % changed under kills, 1 % in peace."""
    wrong = 0
    for version, kills in enumerate((given.kills, given.kills // 10, 0)):
        write_things(place, "attributes", given.people, version)
        if not kills:
            box.faults(share=0)
        phase = sync_under_kills(place, box, kills, rng)
        found = wrong_people(box, given.people, version)
        say(f"version {version}: {phase}; {found} profiles differ")
        wrong += found
    exactly = len(range(7, given.people, 100))
    say(f"1 % is {exactly:,} people; faults given: {box.state()['faults']}")
    return int(wrong > 0 or phase.accepted != exactly)


def say(text: str) -> None:
    """Tell how it goes."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
