"""Mutated exports by the ten thousand: each gives rows, or one of our errors.

``python -m tests.fuzz_exports --count 20000 --seed 1``. Every mutant follows from the
seed and its number alone. They are read some hundred to a process, which has a limit of
memory and must get on; what raises anything else, crashes, hangs, numbers rows wrongly
or tells what a cell holds is kept in ``build/fuzz_exports/``.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import re
import resource
import subprocess
import sys
import tarfile
import time
import traceback
import zipfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import starmap
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import orjson
import polars as pl

from currents_ingest.audiences.decoder import Decoder
from currents_ingest.audiences.shapes import FORMATS, ROW, Dialect
from currents_ingest.audiences.tables import Reading, chunks, json_schema
from currents_ingest.audiences.unpacking import Budget, members
from currents_ingest.errors import CurrentsError

KEPT = Path(__file__).parents[1] / "build" / "fuzz_exports"
PART = 250
"""Mutants in one process."""
PATIENCE = 60
"""Seconds for a process."""
MEMORY = 8 << 30
"""Bytes of addresses; what is really used is checked against RESIDENT."""
RESIDENT = 1500
"""MiB that a process may have held at its worst."""
LIMIT = 4 << 20
CANARY = "canary"
"""Part of every cell, so of no error."""
TOKENS = [
    *(
        b'"',
        b'""',
        b",",
        b"\n",
        b"\r\n",
        b"\r",
        b"\\",
        b"\t",
        b"\0",
        b"\xff",
        b";",
        b"|",
    ),
    *(b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff", b"PAR1", b"PK\x03\x04", b"PK\x05\x06"),
    *(b"\x1f\x8b\x08", b"ustar\0", b"-----BEGIN PGP", b"{", b"}", b"[", b"]", b"null"),
    *(b"18446744073709551616", b"1e999", b"\xed\xa0\x80", b"GNU.sparse.major=1"),
    *(b"\xff\xff\xff\xff", bytes(512), b"7" * 12, b"9" * 30 + b" path=x\n", b"__row__"),
]


def rows() -> list[tuple[str, ...]]:
    """Return a table that has something of everything."""
    odd = ['a "b"', "c,d", "e\nf", "", "é", "|;\t", " x ", "0017", "\\", "1.50"]
    return [
        ("id", "name", "odd"),
        *((str(n), f"{CANARY}{n}", odd[n % 10]) for n in range(40)),
    ]


def delimited(delimiter: str, end: str, escape: str = "") -> bytes:
    """Write the table as text, all quoted or escaped."""

    def cell(text: str) -> str:
        if not escape:
            return '"' + text.replace('"', '""') + '"'
        for one in (escape, delimiter, '"'):
            text = text.replace(one, escape + one)
        return text.replace("\n", escape + "n")

    return end.join(delimiter.join(map(cell, row)) for row in rows()).encode()


@cache
def decoder() -> Decoder:
    """Return the process that decodes Parquet; it outlives each damaged file."""
    return Decoder()


@cache
def plain() -> list[bytes]:
    """Return the table in every format."""
    head, *body = rows()
    objects = [
        dict(zip(head, row, strict=True)) | {"n": [1, {"x": None}]} for row in body
    ]
    frame = pl.DataFrame([one | {"n": [1, 2]} for one in objects])
    found = [
        delimited(",", "\n"),
        delimited("|", "\r\n"),
        delimited("\t", "\n", "\\"),
        delimited(",", "\n").replace(b'"', b""),
        delimited(",", "\n").decode().encode("utf-16"),
        orjson.dumps(objects),
        b"\n".join(map(orjson.dumps, objects)),
    ]
    for codec in ("snappy", "zstd", "uncompressed", "gzip"):
        file = io.BytesIO()
        frame.write_parquet(file, compression=codec, row_group_size=17)
        found.append(file.getvalue())
    return found


def packed(rng: Random, body: bytes, depth: int = 0) -> bytes:
    """Pack something, maybe, and maybe too often."""
    kind = rng.choice(
        ["", "", "gzip", "zip", "tar"] if depth < 1 else [""] * 6 + ["gzip"]
    )
    if not kind or depth > 2:
        return body
    if kind == "gzip":
        found = gzip.compress(body, 1, mtime=0)
    else:
        found = (zipped if kind == "zip" else tarred)(rng, body)
    return packed(rng, found, depth + 1)


def zipped(rng: Random, body: bytes) -> bytes:
    """Pack by zip, twice the same."""
    file = io.BytesIO()
    method = rng.choice([zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED, zipfile.ZIP_LZMA])
    with zipfile.ZipFile(file, "w", method) as archive:
        archive.writestr("p/1", body)
        archive.writestr("p/2", body)
    return file.getvalue()


def tarred(rng: Random, body: bytes) -> bytes:
    """Pack by tar, with a long name."""
    file = io.BytesIO()
    form = rng.choice([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
    with tarfile.open(fileobj=file, mode="w", format=form) as archive:
        for name in ("p/1", "é" * 120):
            info = tarfile.TarInfo(name)
            info.size = len(body)
            archive.addfile(info, io.BytesIO(body))
    return file.getvalue()


def damaged(rng: Random, body: bytes) -> bytes:
    """Spoil a few places."""
    found = bytearray(body)
    for _ in range(rng.choice([0, 1, 1, 2, 4, 16])):
        at = rng.randrange(len(found) + 1)
        to = at + rng.choice([0, 1, 4, 64])
        what = rng.randrange(6)
        if what == 0:
            found[at:to] = rng.randbytes(to - at)
        elif what == 1:
            del found[at:to]
        elif what == 2:
            found[at:at] = found[at:to]
        elif what == 3 and rng.random() < 0.1:
            del found[at:]
        elif found and at < len(found):
            found[at] ^= 1 << rng.randrange(8)
        else:
            found[at:at] = rng.choice(TOKENS)
        if rng.random() < 0.5:
            found[at:at] = rng.choice(TOKENS)
    return bytes(found)


def mutant(seed: int, number: int) -> tuple[bytes, Dialect]:
    """Return the file and what is said of it."""
    rng = Random(f"{seed}/{number}")
    body = rng.choice(plain())
    if rng.random() < 0.7:
        body = damaged(rng, body)
    body = packed(rng, body)
    if rng.random() < 0.5:
        body = damaged(rng, body)
    if rng.random() < 0.6:
        return body, Dialect()
    return body, Dialect(
        format=rng.choice(["", "", *FORMATS]),
        delimiter=rng.choice(["", "", ",", "|", "\t", "é", "x"]),
        quote=rng.choice(['"', '"', "", "'"]),
        escape=rng.choice(["", "\\", '"', "§"]),
        header=rng.random() < 0.7,
        names=rng.choice([(), ("a",), ("a", "b", "c")]),
        encoding=rng.choice(["", "", "utf-8", "utf-16", "latin-1", "cp1252", "utf-7"]),
    )


def outcome(body: bytes, dialect: Dialect) -> str:
    """Return what became of a file; raises whatever ought not to happen."""
    try:
        opened = members("x", io.BytesIO(body), Budget(LIMIT))
        schema = json_schema(opened, dialect)
        reading = Reading(dialect=dialect, rows=7, schema=schema, decoder=decoder())
        seen: dict[str, int] = {}
        bad = set()
        for member in members("x", io.BytesIO(body), Budget(LIMIT)):
            for chunk in chunks(member, reading):
                assert chunk.frame.columns[0] == ROW
                assert 0 <= chunk.frame.height <= 7
                numbers = chunk.frame[ROW].to_list()
                last = seen.get(chunk.part, 0)
                assert numbers == sorted(set(numbers)), "numbers out of order"
                assert not numbers or numbers[0] > last, "a number twice"
                seen[chunk.part] = numbers[-1] if numbers else last
                bad |= {one.reason for one in chunk.bad}
    except CurrentsError as error:
        assert CANARY not in str(error), "an error tells what a cell holds"
        return re.sub(r"\d+", "N", str(error).split(":", 1)[1])[:60]
    assert not any(CANARY in reason for reason in bad)
    return "rows, some bad" if bad else "rows"


def attack(seed: int, first: int, count: int, progress: Path) -> None:
    """Read mutants, and note each before it is read; prints what became of them."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    became: Counter[str] = Counter()
    failed: dict[int, str] = {}
    slowest = 0.0
    for number in range(first, first + count):
        progress.write_text(str(number))
        began = time.monotonic()
        try:
            became[outcome(*mutant(seed, number))] += 1
        except BaseException:  # noqa: BLE001 (that is what is looked for)
            failed[number] = traceback.format_exc()
        slowest = max(slowest, time.monotonic() - began)
    decoder().close()
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    if held > RESIDENT:
        failed[first] = f"{held} MiB held somewhere in this part"
    report = {"became": became, "failed": failed, "slowest": slowest, "held": held}
    print(json.dumps(report))  # noqa: T201


def part(seed: int, first: int, count: int) -> dict:
    """Run a part in a process of its own; one that dies is its last mutant's fault."""
    with TemporaryDirectory() as folder:
        progress = Path(folder) / "number"
        arguments = [str(seed), str(first), str(count), str(progress)]
        command = [sys.executable, "-m", "tests.fuzz_exports", "--part", *arguments]
        try:
            done = subprocess.run(
                command, capture_output=True, timeout=PATIENCE, check=True, text=True
            )
        except subprocess.SubprocessError as error:
            number = int(progress.read_text()) if progress.exists() else first
            told = f"{error}\n{error.stderr or ''}"
            rest = part(seed, number + 1, first + count - number - 1)
            return rest | {"failed": rest["failed"] | {str(number): told}}
    return json.loads(done.stdout.splitlines()[-1])


def main() -> int:
    """Attack, report, and keep what failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--part", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        seed, first, count, progress = options.part
        attack(int(seed), int(first), int(count), Path(progress))
        return 0
    parts = [
        (options.seed, first, min(PART, options.count - first))
        for first in range(0, options.count, PART)
    ]
    with ThreadPoolExecutor(2) as pool:
        reports = list(pool.map(lambda one: part(*one), parts))
    became: Counter[str] = Counter()
    failed = {}
    for report in reports:
        became.update(report["became"])
        failed |= report["failed"]
    lines = [
        *starmap("{1:8,}  {0}".format, became.most_common()),
        f"{max(report['slowest'] for report in reports):8.2f}  s for the slowest",
        f"{max(report['held'] for report in reports):8,}  MiB held at the most",
        f"{len(failed):8,}  failed",
    ]
    print("\n".join(lines))  # noqa: T201
    for number, told in failed.items():
        KEPT.mkdir(parents=True, exist_ok=True)
        body, dialect = mutant(options.seed, int(number))
        (KEPT / f"{options.seed}-{number}.bin").write_bytes(body)
        (KEPT / f"{options.seed}-{number}.txt").write_text(f"{dialect}\n\n{told}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
