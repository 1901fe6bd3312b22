"""Any export is found whole and read row by row, or refused with what to do."""

from __future__ import annotations

import gc
import gzip
import io
import os
import random
import struct
import subprocess
import sys
import tarfile
import tracemalloc
import zipfile
import zlib
from contextlib import closing
from datetime import UTC, datetime, timedelta
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from threading import Thread
from typing import TYPE_CHECKING
from urllib.parse import quote

import boto3
import fsspec
import fsspec.implementations.memory
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from currents_ingest.audiences import delimited, documents, records, tables, unpacking
from currents_ingest.audiences.decoder import Decoder, limit_memory, serve
from currents_ingest.audiences.exports import ROW, Dialect, find, read
from currents_ingest.audiences.remote import told
from currents_ingest.audiences.shapes import BLOCK
from currents_ingest.errors import ExportError, ExportNotReadyError
from tests.sftp_server import PASSWORD, USER, sftp_server

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Bucket

NOW = datetime(2026, 11, 25, 12, 0, tzinfo=UTC)
SETTLE = timedelta(minutes=10)
CSV = b"id,name\n1,Ann\n2,Bob\n"
PEOPLE = [(1, "1", "Ann"), (2, "2", "Bob")]
ENOUGH = 1 << 30


def write(path: Path, body: bytes, *, age: float = 3600) -> Path:
    """Write a file that is so many seconds old at NOW."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(body)
    os.utime(path, (NOW.timestamp() - age,) * 2)
    return path


def found(url, **options):
    return find(str(url), **{"settle": SETTLE, "now": NOW} | options)


def names(delivery):
    return [part.key.rpartition("/")[2] for part in delivery.parts]


def chunks(url, dialect=None, *, most=ENOUGH, rows=100_000):
    return list(read(found(url), dialect or Dialect(), max_unpacked=most, rows=rows))


def rows(url, dialect=None):
    return [row for chunk in chunks(url, dialect) for row in chunk.frame.rows()]


def table(tmp_path, body, dialect=None):
    """Return the rows of one file, and why which rows are bad."""
    some = chunks(write(tmp_path / "x", body), dialect)
    bad = {one.row: one.reason for chunk in some for one in chunk.bad}
    return [row for chunk in some for row in chunk.frame.rows()], bad


def refusal(call, error=ExportError):
    with pytest.raises(error) as caught:
        call()
    return caught.value.reason


def zipped(members, **options):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, body in members.items():
            with archive.open(name, "w", **options) as member:
                member.write(body)
    return file.getvalue()


def tarred(members, mode="w", **options):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode, **options) as archive:
        for name, body in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(body)
            archive.addfile(info, io.BytesIO(body))
    return file.getvalue()


def parquet(frame, **options):
    file = io.BytesIO()
    frame.write_parquet(file, **options)
    return file.getvalue()


# Which objects are the delivery


@pytest.mark.parametrize(
    ("files", "kept"),
    [
        pytest.param({"a.csv": 3600}, ["a.csv"], id="one"),
        pytest.param(
            {"0000001.csv": 3700, "0000002.csv": 3600, "0000003.csv": 3650},
            ["0000001.csv", "0000002.csv", "0000003.csv"],
            id="split output",
        ),
        pytest.param(
            {"0000001.csv": 3600, "0000002.csv": 3590, "0000003.csv": 90000},
            ["0000001.csv", "0000002.csv"],
            id="fewer parts than the export before left",
        ),
        pytest.param(
            {"2026/11/23/x.csv": 180000, "2026/11/24/x.csv": 90000},
            ["2026/11/24/x.csv"],
            id="a folder a day",
        ),
        pytest.param(
            {"x_11-24-2026.csv": 90000, "x_11-25-2026.csv": 3600},
            ["x_11-25-2026.csv"],
            id="a file a day",
        ),
        pytest.param(
            {"x_2026-11-24.csv": 3660, "x_2026-11-25.csv": 3600},
            ["x_2026-11-25.csv"],
            id="two days made up for within a minute",
        ),
        pytest.param(
            {
                "p/part-00000-1b4e28ba-2fa1-11d2-883f-0016d3cca427.parquet": 3660,
                "p/part-00001-1b4e28ba-2fa1-11d2-883f-0016d3cca427.parquet": 3655,
                "p/part-00000-6ba7b810-9dad-11d1-80b4-00c04fd430c8.parquet": 3600,
            },
            ["p/part-00000-6ba7b810-9dad-11d1-80b4-00c04fd430c8.parquet"],
            id="the parts of an older job remain",
        ),
        pytest.param(
            {
                "part-00000-1b4e28ba-2fa1-11d2-883f-0016d3cca427.csv": 9000,
                "part-00001-1b4e28ba-2fa1-11d2-883f-0016d3cca427.csv": 3600,
            },
            [
                "part-00000-1b4e28ba-2fa1-11d2-883f-0016d3cca427.csv",
                "part-00001-1b4e28ba-2fa1-11d2-883f-0016d3cca427.csv",
            ],
            id="one job is one delivery however slow",
        ),
        pytest.param(
            {
                "part-00000-1b4e28ba-2fa1-11d2-883f-0016d3cca427-c000.csv": 3600,
                "part-00001-6ba7b810-9dad-11d1-80b4-00c04fd430c8-c000.csv": 3590,
            },
            [
                "part-00000-1b4e28ba-2fa1-11d2-883f-0016d3cca427-c000.csv",
                "part-00001-6ba7b810-9dad-11d1-80b4-00c04fd430c8-c000.csv",
            ],
            id="an id of its own for each part",
        ),
        pytest.param(
            {
                "part-00000-1b4e28ba-2fa1-11d2-883f-0016d3cca427.csv": 90000,
                "part-00002-6ba7b810-9dad-11d1-80b4-00c04fd430c8.csv": 3600,
            },
            ["part-00002-6ba7b810-9dad-11d1-80b4-00c04fd430c8.csv"],
            id="a job may leave numbers out",
        ),
        pytest.param(
            {"000000_0": 3600, "000001_0": 3590},
            ["000000_0", "000001_0"],
            id="names of Hive",
        ),
        pytest.param(
            {"a1b2c3d4e5.csv": 3600, "f6a7b8c9d0.csv": 3601},
            ["a1b2c3d4e5.csv", "f6a7b8c9d0.csv"],
            id="generated names without a number",
        ),
        pytest.param(
            {
                "a.csv": 3600,
                "_SUCCESS": 3600,
                ".a.crc": 3600,
                "_tmp/b.csv": 1,
                "a.csv.DONE": 3600,
            },
            ["a.csv"],
            id="what is hidden is no data",
        ),
        pytest.param(
            {"alpha.csv": 90000, "beta.csv": 3600}, ["beta.csv"], id="an older template"
        ),
    ],
)
def test_only_the_newest_write_is_the_delivery(tmp_path, files, kept):
    for name, age in files.items():
        write(tmp_path / "in" / name, CSV, age=age)
    root = f"{tmp_path}/in/"
    assert [one.key.removeprefix(root) for one in found(root).parts] == kept


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        pytest.param(
            {"alpha.csv": 3600, "beta.csv": 3601},
            "holds 2 kinds of files that were written together",
            id="two templates",
        ),
        pytest.param(
            {"group_1.csv": 3600, "group_2.csv": 3600},
            "holds 2 kinds of files that were written together",
            id="two treatment groups",
        ),
        pytest.param(
            {"x_20261125101500.csv": 3600, "x_20261125101559.csv": 3541},
            "holds 2 kinds of files that were written together",
            id="two exports of one day",
        ),
        pytest.param(
            {"0000001.csv": 9000, "0000002.csv": 3600},
            "holds 1 new and 1 older parts",
            id="a slow write, or two",
        ),
        pytest.param(
            {"x_2026-11-24.csv": 3600, "x_2026-11-25.csv": 3600},
            "holds the parts of 2 days, written at the same time",
            id="two days at once",
        ),
        pytest.param(
            {"1/0000001.csv": 3600, "2/0000001.csv": 3700},
            "holds 2 folders that were written together",
            id="two folders",
        ),
        pytest.param(
            {
                "part-00000-1b4e28ba-2fa1-11d2-883f-0016d3cca427.csv": 3600,
                "part-00000-6ba7b810-9dad-11d1-80b4-00c04fd430c8.csv": 3600,
            },
            "holds the parts of 2 jobs",
            id="two jobs at once",
        ),
        pytest.param(
            {"state=CA/0000001.csv": 3600}, "holds partition folders", id="partitions"
        ),
    ],
)
def test_two_deliveries_are_never_mixed(tmp_path, files, reason):
    for name, age in files.items():
        write(tmp_path / name, CSV, age=age)
    assert refusal(lambda: found(tmp_path)).startswith(reason)


def test_a_longer_settle_time_is_a_longer_pause_within_one_write(tmp_path):
    write(tmp_path / "0000001.csv", CSV, age=9000)
    write(tmp_path / "0000002.csv", CSV, age=7000)
    assert len(found(tmp_path, settle=timedelta(hours=1)).parts) == 2


def test_a_pattern_takes_what_it_matches(tmp_path):
    for name in ("alpha_1.csv", "alpha_2.csv", "beta.csv"):
        write(tmp_path / name, CSV)
    assert names(found(tmp_path / "alpha_*.csv")) == ["alpha_1.csv", "alpha_2.csv"]


def test_an_object_may_have_the_name_of_a_pattern(tmp_path):
    write(tmp_path / "a[1].csv", CSV)
    assert names(found(tmp_path / "a[1].csv")) == ["a[1].csv"]


@pytest.mark.parametrize("url", ["", "x.csv", "*.csv"])
def test_nothing_there_is_not_ready(tmp_path, url):
    (tmp_path / "empty").mkdir()
    write(tmp_path / "empty" / "0", b"")
    reason = refusal(lambda: found(tmp_path / "empty" / url), ExportNotReadyError)
    assert reason == "there is no export yet"


# When it is complete


def test_a_young_part_says_how_long_to_wait(tmp_path):
    write(tmp_path / "1.csv", CSV, age=700)
    write(tmp_path / "2.csv", CSV, age=599)
    assert refusal(lambda: found(tmp_path), ExportNotReadyError) == (
        "was written to just now and has no .DONE marker; it counts as complete in 1 s"
    )
    assert found(tmp_path, now=NOW + timedelta(seconds=1))


@pytest.mark.parametrize(
    ("url", "marker", "counts"),
    [
        pytest.param("d/x.csv.gz", "d/x.csv.gz.DONE", True, id="after the key"),
        pytest.param("d/x.csv.gz", "d/x.DONE", True, id="without extensions"),
        pytest.param("d/x.csv.gz", "d/run.DONE", True, id="alone in the folder"),
        pytest.param("d/x.csv.gz", "d/y.csv.DONE", False, id="another object's"),
        pytest.param("d/p.csv", "d/p.csv/all.DONE", True, id="in the folder"),
        pytest.param("d/p.csv", "d/p.csv/.DONE", True, id="in the folder, no name"),
        pytest.param("d/p.csv", "d/p.csv.DONE", True, id="beside the folder"),
        pytest.param("d/p.csv", "d/p.DONE", True, id="beside, without extension"),
        pytest.param("d/p.csv", "d/x.DONE", False, id="beside, another's"),
    ],
)
def test_a_marker_completes_a_delivery_at_once(tmp_path, url, marker, counts):
    write(tmp_path / "d/x.csv.gz", CSV, age=2)
    write(tmp_path / "d/p.csv/0000001.csv", CSV, age=2)
    write(tmp_path / "d/y.csv", CSV, age=9000)
    write(tmp_path / marker, b"", age=1)
    if counts:
        assert found(tmp_path / url, done="required").parts
    else:
        reason = refusal(
            lambda: found(tmp_path / url, done="required"), ExportNotReadyError
        )
        assert reason == "has no .DONE marker yet"


def test_a_marker_older_than_a_part_is_of_the_write_before(tmp_path):
    write(tmp_path / "x.csv", CSV, age=7200)
    write(tmp_path / "x.csv.DONE", b"", age=7201)
    assert refusal(lambda: found(tmp_path / "x.csv"), ExportNotReadyError).startswith(
        "is being written again"
    )


def test_the_id_changes_with_any_part_and_with_nothing_else(tmp_path):
    write(tmp_path / "1.csv", CSV)
    write(tmp_path / "2.csv", CSV)
    first = found(tmp_path).id
    assert first == found(tmp_path, now=NOW + SETTLE).id == found(f"{tmp_path}/*").id
    assert len(first) == 16
    write(tmp_path / "2.csv", CSV, age=3601)
    assert found(tmp_path).id != first


def test_a_part_that_changes_after_it_was_found_is_not_read_on(tmp_path):
    delivery = found(write(tmp_path / "x.csv", CSV))
    write(tmp_path / "x.csv", CSV, age=100)
    reading = read(delivery, Dialect(), max_unpacked=ENOUGH)
    assert refusal(lambda: next(reading), ExportNotReadyError) == (
        "has been written again since it was found"
    )
    (tmp_path / "x.csv").unlink()
    reading = read(delivery, Dialect(), max_unpacked=ENOUGH)
    assert refusal(lambda: list(reading), ExportNotReadyError) == "is no longer there"


def test_a_part_that_changes_while_it_is_read_ends_in_an_error(tmp_path):
    reading = read(
        found(write(tmp_path / "x.csv", CSV)), Dialect(), max_unpacked=ENOUGH, rows=1
    )
    assert next(reading).frame.height == 1
    write(tmp_path / "x.csv", CSV, age=100)
    assert refusal(lambda: list(reading), ExportNotReadyError) == (
        "has been written again since it was found"
    )


# Delimited text


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(CSV, id="lf"),
        pytest.param(CSV.replace(b"\n", b"\r\n"), id="crlf"),
        pytest.param(CSV[:-1], id="no last line end"),
        pytest.param(b'"id","name"\n"1","Ann"\n"2","Bob"\n', id="all quoted"),
        pytest.param(b'id,name\n1,"Ann"\n2,"Bob"\n', id="non-numeric quoted"),
        pytest.param(b"id\tname\n1\tAnn\n2\tBob\n", id="tab"),
        pytest.param(b"id|name\n1|Ann\n2|Bob\n", id="pipe"),
        pytest.param(b"id;name\n1;Ann\n2;Bob\n", id="semicolon"),
        pytest.param(b"\xef\xbb\xbf" + CSV, id="byte order mark"),
        pytest.param(CSV.decode().encode("utf-16"), id="utf-16"),
        pytest.param(b"\xfe\xff" + CSV.decode().encode("utf-16-be"), id="utf-16-be"),
        pytest.param(CSV.decode().encode("utf-32"), id="utf-32"),
        pytest.param(b"\nid,name\n\n1,Ann\r\n\n2,Bob\n\n", id="blank lines"),
    ],
)
def test_every_common_dialect_is_found_out(tmp_path, body):
    assert table(tmp_path, body) == (PEOPLE, {})


@pytest.mark.parametrize(
    ("body", "dialect"),
    [
        pytest.param(b"id^name\n1^Ann\n2^Bob\n", {"delimiter": "^"}, id="delimiter"),
        pytest.param("id¦name\n1¦Ann\n2¦Bob\n".encode(), {"delimiter": "¦"}, id="wide"),
        pytest.param(b"id,x|name\n", {"delimiter": "|"}, id="delimiter, comma in name"),
        pytest.param(
            b"1,Ann\n2,Bob\n",
            {"header": False, "names": ("id", "name")},
            id="no header",
        ),
        pytest.param(
            b"1|Ann\n2|Bob\n", {"header": False, "names": ("id", "name")}, id="and pipe"
        ),
        pytest.param(b"id\tname\n1\tAnn\n2\tBob\n", {"format": "tsv"}, id="tsv"),
        pytest.param(b"id|name\n1|Ann\n2|Bob\n", {"format": "psv"}, id="psv"),
        pytest.param(b"'id','name'\n'1','Ann'\n2,Bob\n", {"quote": "'"}, id="quote"),
        pytest.param(CSV.decode().encode("cp500"), {"encoding": "cp500"}, id="ebcdic"),
        pytest.param(
            CSV.decode().encode("utf-16-le"), {"encoding": "utf-16-le"}, id="utf-16-le"
        ),
    ],
)
def test_every_dialect_can_be_said(tmp_path, body, dialect):
    got, bad = table(tmp_path, body, Dialect(**dialect))
    assert (got in ([], PEOPLE), bad) == (True, {})


@pytest.mark.parametrize(
    ("line", "value", "dialect"),
    [
        pytest.param(b'1," a ""b"", c\r\nd"', ' a "b", c\r\nd', {}, id="all in quotes"),
        pytest.param(b"1,  x ", "  x ", {}, id="spaces stay"),
        pytest.param(b"1,", None, {}, id="empty is null"),
        pytest.param(b'1,""', None, {}, id="quoted empty is null"),
        pytest.param(b'1,5" pipe', '5" pipe', {}, id="a quote in mid cell is text"),
        pytest.param(b'1,"x', '"x', {"quote": ""}, id="no quotes at all"),
        pytest.param(b"1,a\0b", "a\0b", {}, id="zero byte"),
        pytest.param(b"1,\xef\xbb\xbfx", "\ufeffx", {}, id="mark amid text"),
        pytest.param(rb'1,"a\"b\\c"', r'a"b\c', {"escape": "\\"}, id="escape"),
        pytest.param(
            rb"1,a\,b\nc\rd\\e\xf",
            "a,b\nc\rd\\e\\xf",
            {"escape": "\\", "quote": ""},
            id="escape, as Commons CSV writes it",
        ),
        pytest.param(b"1,a\\\nb", "a\nb", {"escape": "\\"}, id="escaped line end"),
        pytest.param(b'1,"a""b"', 'a"b', {"escape": '"'}, id="escape is the quote"),
    ],
)
def test_a_cell_is_the_text_that_was_written(tmp_path, line, value, dialect):
    got, bad = table(tmp_path, b"id,v\n" + line + b"\n2,y\n", Dialect(**dialect))
    assert (got, bad) == ([(1, "1", value), (2, "2", "y")], {})


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        pytest.param(b"1", "1 cells where there are 2 columns", id="short"),
        pytest.param(b"1,2,3", "3 cells where there are 2 columns", id="long"),
        pytest.param(b'1,"a"b', "text after a closing quote", id="stray quote"),
        pytest.param(b'"1,a', "a quote that is not closed", id="open quote"),
        pytest.param(b"1,\xff", "not valid UTF-8", id="not utf-8"),
        pytest.param(b"1,\xed\xa0\x80", "not valid UTF-8", id="surrogate"),
        pytest.param(b"1,a\rb", "a carriage return outside quotes", id="bare cr"),
        pytest.param(
            b'1,"' + b"x" * (1 << 20) + b'y"',
            "a cell of more than 1 MiB, as after a stray quote",
            id="endless",
        ),
        pytest.param(b"x" * (20 << 20), "a line of more than 8 MiB", id="endless line"),
    ],
)
def test_a_bad_row_is_left_out_counted_and_told(tmp_path, line, reason):
    got, bad = table(tmp_path, b"id,v\n0,x\n" + line + b"\n2,y\n3,z\n")
    assert (got, bad) == ([(1, "0", "x"), (3, "2", "y"), (4, "3", "z")], {2: reason})


def test_short_and_long_rows_do_not_make_up_for_each_other(tmp_path):
    body = b"a,b,c\n1,2\n1,2,3,4\n1,2,3\n"
    assert table(tmp_path, body) == (
        [(3, "1", "2", "3")],
        {
            1: "2 cells where there are 3 columns",
            2: "4 cells where there are 3 columns",
        },
    )


def test_a_stray_quote_costs_its_own_line_only(tmp_path):
    lines = [b'%d,"x%d"\n' % (n, n) for n in range(200_000)]
    lines[1000] = b'1000,"x1000\n'
    got, bad = table(tmp_path, b"id,v\n" + b"".join(lines))
    assert len(got) == 199_999
    assert bad == {1001: "text after a closing quote"}


def test_a_last_quote_never_closed_costs_its_own_line_only(tmp_path):
    lines = [b"%d,x\n" % n for n in range(1_000_000)]
    lines[5] = b'5,"x\n'
    got, bad = table(tmp_path, b"id,v\n" + b"".join(lines))
    assert len(got) == 999_999
    assert list(bad) == [6]


def test_an_open_quote_holds_up_no_more_than_the_next_block():
    taken = []

    def blocks():
        for block in (b'id,v\n"0,x\n', *[b"1,x\n" * (BLOCK // 4)] * 4):
            taken.append(len(block))
            yield block

    frame, bad = next(delimited.tables(blocks(), Dialect(), "x"))
    assert [one.row for one in bad] == [1]
    assert frame.height >= BLOCK // 4
    assert sum(taken) < 4 * BLOCK


def test_a_mark_in_the_first_cell_after_the_header_is_text(tmp_path):
    assert table(tmp_path, b"id,v\n\xef\xbb\xbf1,x\n") == ([(1, "\ufeff1", "x")], {})


def test_a_bad_row_is_told_once_however_short_the_chunks(tmp_path):
    some = chunks(write(tmp_path / "x", b"id,v\n1\n2,x\n3,x\n"), rows=1)
    assert [len(chunk.bad) for chunk in some] == [1, 0]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        pytest.param(b"a,b,a\n1,2,3\n", "names 1 of its columns twice", id="twice"),
        pytest.param(b"a,__row__\n1,2\n", "has a column __row__", id="taken"),
        pytest.param(
            b",".join(b"%d" % n for n in range(10_001)),
            "has more than 10,000",
            id="wide",
        ),
        pytest.param(b"a,b|c\n1,2\n", "the header has 2 cells by more", id="delimiter"),
        pytest.param(b'a,"b"c\n1,2\n', "the header cannot be read (text", id="quote"),
        pytest.param(b"a,b\r1,2\r", "the header cannot be read (a carr", id="old mac"),
        pytest.param(b"a\xff,b\n1,2\n", "the header is not valid UTF-8", id="utf-8"),
        pytest.param(
            "a,b\n1,2\n".encode("utf-16-le"), "the header holds zero bytes", id="utf-16"
        ),
        pytest.param(
            b"\xff\xfea\0,", "is not utf-16, or is cut short", id="cut utf-16"
        ),
        pytest.param(b"%PDF-1.7\n", "is PDF, not one of csv", id="something else"),
    ],
)
def test_a_file_that_cannot_be_understood_is_refused(tmp_path, body, reason):
    assert refusal(lambda: table(tmp_path, body)).startswith(reason)


@pytest.mark.parametrize(
    ("dialect", "reason"),
    [
        ({"header": False}, "has no header; give the names of its columns"),
        ({"header": False, "names": ("a", "b", "c")}, "no delimiter parts the first"),
        ({"format": "xlsx"}, "the format is one of csv, tsv"),
        ({"format": "parquet"}, "is something else, not parquet"),
        ({"delimiter": "::"}, "delimiter, quote and escape are one character"),
        ({"delimiter": '"'}, "delimiter, quote and escape must differ"),
        ({"encoding": "klingon"}, "there is no text encoding 'klingon'"),
        ({"encoding": "base64"}, "there is no text encoding 'base64'"),
    ],
)
def test_a_dialect_that_cannot_be_is_refused(tmp_path, dialect, reason):
    call = lambda: table(tmp_path, CSV, Dialect(**dialect))  # noqa: E731
    assert refusal(call).startswith(reason)


@pytest.mark.parametrize(
    ("body", "dialect", "shapes"),
    [
        pytest.param(b"", {}, [], id="empty"),
        pytest.param(b"\n\n", {}, [], id="blank"),
        pytest.param(b"id,name\n", {}, [(0, 3)], id="header only"),
        pytest.param(b"id,name", {}, [(0, 3)], id="header without line end"),
        pytest.param(
            b"", {"header": False, "names": ("a",)}, [], id="empty, no header"
        ),
        pytest.param(CSV, {}, [(2, 3)], id="rows"),
    ],
)
def test_columns_come_even_without_rows(tmp_path, body, dialect, shapes):
    some = chunks(write(tmp_path / "x", body), Dialect(**dialect))
    assert [chunk.frame.shape for chunk in some] == shapes
    assert all(set(chunk.frame.dtypes[1:]) == {pl.String} for chunk in some)
    assert all(chunk.frame[ROW].dtype == pl.UInt32 for chunk in some)


def test_chunks_are_no_longer_than_asked_and_number_on(tmp_path):
    body = b"n\n" + b"".join(b"%d\n" % n for n in range(1, 26))
    some = chunks(write(tmp_path / "x", body), rows=10)
    assert [chunk.frame.height for chunk in some] == [10, 10, 5]
    assert [n for c in some for n in c.frame[ROW]] == list(range(1, 26))


CELLS = st.text(st.sampled_from('ab",;\\\n\r é\0'), max_size=4)


@given(
    st.lists(st.tuples(CELLS, CELLS), max_size=8),
    st.sampled_from(["\n", "\r\n"]),
    st.sampled_from(["all", "special"]),
)
def test_whatever_is_quoted_comes_back(written, end, mode):
    def cell(text):
        special = any(one in text for one in '",;\\\n\r') or mode == "all"
        return '"' + text.replace('"', '""') + '"' if special else text

    body = "".join(f"{cell(a)},{cell(b)}{end}" for a, b in [("x", "y"), *written])
    got = list(delimited.tables([body.encode()], Dialect(), "x"))
    assert [row[1:] for frame, _ in got for row in frame.rows()] == [
        (a or None, b or None) for a, b in written
    ]
    assert not any(bad for _, bad in got)


LINES = st.lists(
    st.sampled_from([b'"', b'""', b",", b"\n", b"\r", b"a", b"\\", b"\xff", b"b,c\n"]),
    max_size=40,
)


@given(
    LINES.map(b"".join),
    st.integers(1, 3),
    st.sampled_from(['"', ""]),
    st.sampled_from(["", "\\"]),
)
def test_polars_reads_what_the_pattern_allows_as_csv_does(body, width, quote, escape):
    marks = records.Marks(delimiter=",", quote=quote, escape=escape)
    end = delimited.rows_pattern(marks, width).match(body).end()
    fast = delimited.by_polars(body[:end], marks, tuple("xyz"[:width]))
    if end and fast is not None:
        exact = records.records(body[:end], 0, marks)
        assert fast.rows() == [tuple(c or None for c in one.cells) for one in exact]


@given(LINES.map(lambda some: b"a,b\n" + b"".join(some)), st.lists(st.integers(0, 60)))
def test_where_blocks_are_cut_changes_nothing(body, cuts):
    edges = [0, *sorted(min(cut, len(body)) for cut in cuts), len(body)]
    pieces = [body[a:b] for a, b in pairwise(edges) if b > a]
    # The first block holds the header.
    while len(pieces) > 1 and pieces[0].count(b"\n") < 1:
        pieces[:2] = [pieces[0] + pieces[1]]

    def outcome(blocks):
        try:
            some = list(delimited.tables(blocks, Dialect(delimiter=","), "x"))
        except ExportError as error:
            return str(error)
        return (
            [row for frame, _ in some for row in frame.rows()],
            [one for _, bad in some for one in bad],
        )

    assert outcome(pieces) == outcome([body])


# JSON and Parquet


@pytest.mark.parametrize("layout", ["array", "lines", "crlf"])
def test_json_has_types_and_tells_null_from_missing(tmp_path, layout):
    some = [
        b'{"id":"01","n":1,"f":1.5,"b":true,"l":[1,2],"o":{"x":1},"m":1}',
        b'{"id":null,"n":2,"f":2,"l":[],"o":{"y":"z"},"m":"a","z":null}',
        b'{"n":null}',
    ]
    end = b"\r\n" if layout == "crlf" else b"\n"
    body = b"[" + b",".join(some) + b"]" if layout == "array" else end.join(some)
    (chunk,) = chunks(write(tmp_path / "x", body))
    assert dict(chunk.frame.schema) == {
        ROW: pl.UInt32,
        "id": pl.String,
        "n": pl.Int64,
        "f": pl.Float64,
        "b": pl.Boolean,
        "l": pl.List(pl.Int64),
        "o": pl.Struct({"x": pl.Int64, "y": pl.String}),
        "m": pl.String,
        "z": pl.String,
    }
    assert chunk.frame.rows() == [
        (1, "01", 1, 1.5, True, [1, 2], {"x": 1, "y": None}, "1", None),
        (2, None, 2, 2.0, None, [], {"x": None, "y": "z"}, '"a"', None),
        (3, None, None, None, None, None, None, None, None),
    ]
    assert {name: list(said) for name, said in chunk.nulls.items()} == {
        "id": [False, True, False],
        "n": [False, False, True],
        "z": [False, True, False],
    }
    assert chunk.typed


def test_json_columns_are_those_of_all_parts(tmp_path):
    write(tmp_path / "1.json", b'{"a":1}\n')
    write(tmp_path / "2.json", b'{"a":1.5,"b":"x"}\n')
    assert [dict(chunk.frame.schema) for chunk in chunks(tmp_path)] == [
        {ROW: pl.UInt32, "a": pl.Float64, "b": pl.String}
    ] * 2


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        (b"9007199254740992 1.5", pl.Float64),
        (b"9007199254740993 1.5", pl.String),
        (b"9223372036854775807 1", pl.Int64),
        (b"9223372036854775808 1", pl.String),
        (b"[1] [1.5]", pl.List(pl.Float64)),
        (b'[1] ["a"]', pl.String),
        (b"[null] [[]]", pl.List(pl.List(pl.String))),
        (b"{} {}", pl.String),
        (b'{"a":1} {"b":[2]}', pl.Struct({"a": pl.Int64, "b": pl.List(pl.Int64)})),
        (
            b'{"a":{"b":1}} {"a":{"b":2.5}}',
            pl.Struct({"a": pl.Struct({"b": pl.Float64})}),
        ),
        (b"9007199254740993 1 2", pl.Int64),
        (b"null 1.5", pl.Float64),
        (b"1 null", pl.Int64),
        (b'{"a":1} {"a":"b"}', pl.String),
        (b'{"a":1} {"a":null}', pl.Struct({"a": pl.Int64})),
        (b"[" * 30 + b"]" * 30 + b" 1", pl.String),
        (b"null null", pl.String),
        (b"true 1", pl.String),
    ],
)
def test_a_json_type_holds_all_values_exactly(tmp_path, values, dtype):
    some = [b'{"v":%b}' % one for one in values.split()]
    write(tmp_path / "one" / "0.json", b"\n".join(some))
    for n, line in enumerate(some):
        write(tmp_path / "many" / f"{n}.json", line)
    for folder in ("one", "many"):
        kinds = {chunk.frame.schema["v"] for chunk in chunks(tmp_path / folder)}
        assert kinds == {dtype}


def test_bad_json_rows_are_told(tmp_path):
    got, bad = table(tmp_path, b'{"a":1}\n{"a":\n[1]\n\n{"a":"\xff"}\n{"a":2}\n')
    assert got == [(1, 1), (5, 2)]
    assert bad == dict.fromkeys((2, 3, 4), "not a JSON object")


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b'[{"a":1},{"a":', "is no valid JSON from character 14 on; export it again"),
        (b'{"__row__":1}', "has a column __row__, a name that is taken; rename it"),
        (
            b'{"a":' + b"[" * 300 + b"]" * 300 + b"}",
            "nests values deeper than 250 levels",
        ),
        (
            b"{" + b",".join(b'"%d":1' % n for n in range(10_001)) + b"}",
            "has more than 10,000 keys; it is not one table",
        ),
        (
            b'{"a":"' + b"x" * (65 << 20),
            "has a line of more than 64 MiB; it is no NDJSON",
        ),
    ],
)
def test_json_that_cannot_be_read_is_refused(tmp_path, body, reason):
    assert refusal(lambda: table(tmp_path, body)) == reason


def test_a_json_array_too_large_for_memory_is_refused(monkeypatch):
    monkeypatch.setattr(documents, "_LARGEST", 10)
    some = documents.objects([b"[" + b" " * 10], "x")
    assert "export it as NDJSON" in refusal(lambda: list(some))


def test_parquet_is_typed_and_read_in_slices(tmp_path):
    frame = pl.DataFrame({"id": range(250), "at": [NOW] * 250, "t": [["a"]] * 250})
    write(tmp_path / "x", parquet(frame, row_group_size=100))
    some = chunks(tmp_path / "x", rows=70)
    assert max(chunk.frame.height for chunk in some) <= 70
    whole = pl.concat([chunk.frame for chunk in some])
    assert whole.drop(ROW).equals(frame)
    assert whole[ROW].to_list() == list(range(1, 251))
    assert all(chunk.typed for chunk in some)


def test_a_file_that_ends_the_decoder_is_refused_and_the_next_is_read():
    with closing(Decoder()) as decoder:
        good = parquet(pl.DataFrame({"a": [1, 2]}))
        assert sum(f.height for f in decoder.frames(good, 10, "x")) == 2
        decoder._child.kill()  # noqa: SLF001
        decoder._child.wait()  # noqa: SLF001
        assert "Parquet cannot be read" in refusal(
            lambda: list(decoder.frames(good, 10, "x"))
        )
        assert sum(f.height for f in decoder.frames(good, 10, "x")) == 2


def test_a_decoder_that_was_left_amid_a_file_reads_the_next():
    with closing(Decoder()) as decoder:
        good = parquet(pl.DataFrame({"a": range(100)}), row_group_size=10)
        left = decoder.frames(good, 10, "x")
        next(left)
        left.close()
        other = parquet(pl.DataFrame({"b": [1]}))
        assert [f.columns for f in decoder.frames(other, 10, "x")] == [["b"], ["b"]]


def test_the_decoder_says_of_each_file_what_it_holds_or_that_it_is_damaged():
    good = parquet(pl.DataFrame({"a": [1]}))
    asked = [struct.pack(">QQ", 5, len(one)) + one for one in (good, b"PAR1", good)]
    out = io.BytesIO()
    serve(io.BytesIO(b"".join(asked)), out)
    out.seek(0)
    lengths = []
    while size := out.read(8):
        lengths.append(int.from_bytes(size))
        out.seek(lengths[-1] if lengths[-1] < 1 << 32 else 0, io.SEEK_CUR)
    assert [lengths.count(0), lengths.count((1 << 64) - 1), len(lengths)] == [2, 1, 7]


def test_a_decoder_that_ends_amid_a_file_is_no_end_of_the_file():
    with closing(Decoder()) as decoder:
        raw = parquet(pl.DataFrame({"a": range(3_000_000)}), row_group_size=100_000)
        left = decoder.frames(raw, 100_000, "x")
        next(left)
        decoder._child.kill()  # noqa: SLF001
        assert "Parquet cannot be read" in refusal(lambda: list(left))


@pytest.mark.parametrize(
    ("limits", "fits"),
    [("limit(1 << 30)", False), ("limit(1 << 30); limit()", True), ("", True)],
)
def test_what_the_decoder_may_hold_is_limited(limits, fits):
    asked = "from currents_ingest.audiences.decoder import limit_memory as limit\n"
    grab = f"{asked}{limits}\nbytearray(2 << 30)"
    done = subprocess.run(
        [sys.executable, "-c", grab], capture_output=True, check=False
    )
    assert (b"MemoryError" not in done.stderr) == fits
    limit_memory(1 << 46)  # more than there is


def test_an_empty_parquet_file_has_columns(tmp_path):
    write(tmp_path / "x", parquet(pl.DataFrame({"a": [1]}).clear()))
    (chunk,) = chunks(tmp_path / "x")
    assert dict(chunk.frame.schema) == {ROW: pl.UInt32, "a": pl.Int64}


def test_a_parquet_file_too_large_for_memory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "_LARGEST_PARQUET", 100)
    write(tmp_path / "x", parquet(pl.DataFrame({"a": range(100)})))
    assert "export it in smaller parts" in refusal(lambda: rows(tmp_path / "x"))


@pytest.mark.parametrize("cut", [4, 50, 100, -1])
def test_damaged_parquet_is_refused(tmp_path, cut):
    body = parquet(pl.DataFrame({"a": range(100)}))
    write(tmp_path / "x", body[:cut])
    assert "Parquet cannot be read" in refusal(lambda: rows(tmp_path / "x"))


def test_a_parquet_column_may_not_take_our_name(tmp_path):
    write(tmp_path / "x", parquet(pl.DataFrame({ROW: [1]})))
    assert "has a column __row__" in refusal(lambda: rows(tmp_path / "x"))


# Unpacking


PARTS = {"p/0000001.csv": b"id,name\n1,Ann\n", "p/0000002.csv": b"id,name\n2,Bob\n"}


@pytest.mark.parametrize(
    ("body", "parts"),
    [
        pytest.param(gzip.compress(CSV), ["x"], id="gzip"),
        pytest.param(gzip.compress(CSV[:9]) + gzip.compress(CSV[9:]), ["x"], id="two"),
        pytest.param(gzip.compress(CSV) + bytes(300_000), ["x"], id="gzip, padded"),
        pytest.param(zipped({"a.csv": CSV}), ["x!a.csv"], id="zip"),
        pytest.param(zipped({"a.csv": CSV}, force_zip64=True), ["x!a.csv"], id="zip64"),
        pytest.param(
            zipped({"a.csv.gz": gzip.compress(CSV)}), ["x!a.csv.gz"], id="gzip in zip"
        ),
        pytest.param(tarred({"a.csv": CSV}), ["x!a.csv"], id="tar"),
        pytest.param(
            tarred({"a.csv": CSV}, format=tarfile.USTAR_FORMAT), ["x!a.csv"], id="ustar"
        ),
        pytest.param(gzip.compress(tarred({"a": CSV})), ["x!a"], id="tgz"),
        pytest.param(
            gzip.compress(tarred({"a": gzip.compress(CSV)})), ["x!a"], id="gzip in tgz"
        ),
        pytest.param(
            tarred({"d" * 200 + "/a": CSV}, format=tarfile.GNU_FORMAT),
            ["x!" + "d" * 200 + "/a"],
            id="gnu long name",
        ),
        pytest.param(
            tarred({"d" * 200 + "/ä": CSV}, format=tarfile.PAX_FORMAT),
            ["x!" + "d" * 200 + "/ä"],
            id="pax long name",
        ),
        pytest.param(
            zipped({"../../etc/a": CSV, "_SUCCESS": b"x", ".DONE": b"x", "d/": b""}),
            ["x!../../etc/a"],
            id="a path is a name",
        ),
    ],
)
def test_what_packs_a_file_is_told_by_its_bytes(tmp_path, body, parts):
    some = chunks(write(tmp_path / "x", body))
    assert [chunk.part for chunk in some] == parts
    assert [row for chunk in some for row in chunk.frame.rows()] == PEOPLE


@pytest.mark.parametrize("pack", [zipped, tarred])
def test_every_member_of_an_archive_is_a_part(tmp_path, pack):
    some = chunks(write(tmp_path / "x", pack(PARTS)))
    assert {c.part: c.frame.rows() for c in some} == {
        "x!p/0000001.csv": [(1, "1", "Ann")],
        "x!p/0000002.csv": [(1, "2", "Bob")],
    }


def test_a_parquet_folder_may_lie_in_a_tar(tmp_path):
    part = parquet(pl.DataFrame({"a": [1]}))
    body = tarred({"q.parquet/_SUCCESS": b"", "q.parquet/part-0": part})
    assert rows(write(tmp_path / "q.tar", body)) == [(1, 1)]


SECRET = b"\x85\x01\x0c\x03" + bytes(range(60))
PGP = {
    "old packet": SECRET,
    "new packet": b"\xc1\x5e\x03" + bytes(range(60)),
    "password": b"\x8c\x0d\x04\x09" + bytes(range(60)),
    "armour": b"-----BEGIN PGP MESSAGE-----\n\nhQEM",
    "in gzip": gzip.compress(SECRET),
    "in zip": zipped({"a": SECRET}),
    "in tar": tarred({"a": SECRET}),
}


@pytest.mark.parametrize("name", PGP)
def test_an_encrypted_file_is_said_to_be_so(tmp_path, name):
    write(tmp_path / "x.csv", PGP[name])
    assert refusal(lambda: rows(tmp_path / "x.csv")).startswith("is encrypted with PGP")


def encrypted_zip():
    body = bytearray(zipped({"a": CSV}))
    body[6] |= 1
    body[body.index(b"PK\x01\x02") + 8] |= 1
    return bytes(body)


def bzipped():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("a", CSV)
    return file.getvalue()


def linked():
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        info = tarfile.TarInfo("a")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(info)
    return file.getvalue()


DAMAGED = "is damaged or cut short, so it cannot be unpacked; export it again"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        pytest.param(encrypted_zip(), "is encrypted; export it without", id="password"),
        pytest.param(bzipped(), "is packed by a method other", id="bzip2 in zip"),
        pytest.param(linked(), "is packed in a way that is not", id="link in tar"),
        pytest.param(
            gzip.compress(gzip.compress(CSV)),
            "is packed more than once",
            id="gzip twice",
        ),
        pytest.param(
            gzip.compress(zipped({"a": CSV})),
            "is packed more than once",
            id="zip in gz",
        ),
        pytest.param(
            zipped({"a": zipped({"b": CSV})}), "is an archive in an", id="zip in zip"
        ),
        pytest.param(
            zipped({"a": gzip.compress(tarred({"b": CSV}))}),
            "is an archive in an",
            id="tgz in zip",
        ),
        pytest.param(gzip.compress(CSV)[:-1], DAMAGED, id="gzip cut short"),
        pytest.param(gzip.compress(CSV)[:-8] + bytes(8), DAMAGED, id="gzip checksum"),
        pytest.param(gzip.compress(CSV) + b"x", DAMAGED, id="gzip and more"),
        pytest.param(zipped({"a": CSV})[:-1], DAMAGED, id="zip cut short"),
        pytest.param(zipped({"a": CSV})[:40], DAMAGED, id="zip half"),
        pytest.param(tarred({"a": CSV})[:1024], DAMAGED, id="tar without end"),
        pytest.param(tarred({"a": CSV})[:600], DAMAGED, id="tar cut short"),
        pytest.param(
            tarred({"a": CSV, "b": CSV}).replace(b"b\0\0", b"c\0\0"),
            DAMAGED,
            id="tar with a damaged second header",
        ),
    ],
)
def test_what_cannot_be_unpacked_is_refused(tmp_path, body, reason):
    assert refusal(lambda: rows(write(tmp_path / "x", body))).startswith(reason)


def tar_header(**fields):
    info = tarfile.TarInfo("a")
    info.size = len(CSV)
    head = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
    places = {"name": 0, "size": 124, "kind": 156, "magic": 257}
    for name, value in fields.items():
        head[places[name] : places[name] + len(value)] = value
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    return bytes(head)


def pax(record):
    return tar_header(kind=b"x", size=b"%011o\0" % len(record)) + record.ljust(
        512, b"\0"
    )


BODY = CSV.ljust(512, b"\0")
END = bytes(1024)
FIRST = tar_header() + BODY


@pytest.mark.parametrize(
    ("second", "outcome"),
    [
        pytest.param(tar_header(size=b"\x80" + b"\0" * 10 + b"\x14"), 2, id="base 256"),
        pytest.param(tar_header(kind=b"7"), 2, id="contiguous"),
        pytest.param(
            tar_header(name=b"_h", size=b"00000004000") + 4 * BODY + tar_header(),
            2,
            id="hidden",
        ),
        pytest.param(
            tar_header()[:148] + b"rubbish " + tar_header()[156:],
            DAMAGED,
            id="checksum",
        ),
        pytest.param(
            tar_header(kind=b"g", size=b"0" * 11) + tar_header(), 2, id="global"
        ),
        pytest.param(pax(b"12 path=b/c\n") + tar_header(), 2, id="pax path"),
        pytest.param(pax(b"11 size=20\n") + tar_header(), 2, id="pax size"),
        pytest.param(tar_header(kind=b"5", size=b"0" * 11) + tar_header(), 2, id="dir"),
        pytest.param(tar_header(size=b"9" * 11), DAMAGED, id="not octal"),
        pytest.param(tar_header(size=b"\xff" * 12), DAMAGED, id="immense"),
        pytest.param(tar_header(size=b"00000004000"), DAMAGED, id="wrong size"),
        pytest.param(tar_header(kind=b"L", size=b"7" * 11), DAMAGED, id="endless name"),
        pytest.param(pax(b"11 size=-1\n") + tar_header(), DAMAGED, id="negative size"),
        pytest.param(pax(b"99 size=20\n") + tar_header(), DAMAGED, id="pax too long"),
        pytest.param(pax(b"x path=b\n") + tar_header(), DAMAGED, id="pax no length"),
        pytest.param(
            pax(b"22 GNU.sparse.major=1\n") + tar_header(), "is packed in", id="sparse"
        ),
        pytest.param(tar_header(kind=b"S"), "is packed in", id="old sparse"),
    ],
)
def test_a_tar_is_read_strictly(tmp_path, second, outcome):
    write(tmp_path / "x", FIRST + second + BODY + END)
    if outcome == 2:
        assert [chunk.frame.rows() for chunk in chunks(tmp_path / "x")] == [PEOPLE] * 2
    else:
        assert refusal(lambda: rows(tmp_path / "x")).startswith(outcome)


def bomb(pack):
    zeros = zlib.compressobj(9, zlib.DEFLATED, 31)
    body = zeros.compress(b"id\n") + b"".join(
        zeros.compress(b"0\n" * (1 << 19)) for _ in range(60)
    )
    return pack(body + zeros.flush())


@pytest.mark.parametrize("pack", [bytes, lambda body: zipped({"a": body})])
def test_a_bomb_stops_at_the_limit(tmp_path, pack):
    body = bomb(pack)
    assert len(body) < 1 << 20
    write(tmp_path / "x", body)
    tracemalloc.start()
    reason = refusal(lambda: chunks(tmp_path / "x", most=40 << 20))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert reason.startswith("unpacks to more than 41,943,040 bytes")
    assert peak < 100 << 20


@pytest.mark.parametrize(
    ("limit", "fits"), [(2 * len(CSV), True), (2 * len(CSV) - 1, False)]
)
def test_the_limit_is_for_all_parts_together(tmp_path, limit, fits):
    write(tmp_path / "1.csv", CSV)
    write(tmp_path / "2.csv", gzip.compress(CSV))
    call = lambda: chunks(tmp_path, most=limit)  # noqa: E731
    assert len(call()) == 2 if fits else "unpacks to more than" in refusal(call)


def test_a_zip_cannot_name_more_members_than_memory_holds(tmp_path, monkeypatch):
    monkeypatch.setattr(unpacking, "_TOO_MUCH", 1000)
    write(tmp_path / "x", zipped({str(n): b"" for n in range(100)}))
    assert refusal(lambda: rows(tmp_path / "x")) == DAMAGED


# Where it lies


def upload(bucket: Bucket, key: str, body: bytes) -> None:
    boto3.client("s3").put_object(Bucket=bucket.name, Key=key, Body=body)


def s3_rows(url, **options):
    soon = datetime.now(UTC) + timedelta(hours=1)
    delivery = find(url, settle=SETTLE, now=soon, **options)
    some = read(delivery, Dialect(), max_unpacked=ENOUGH)
    return [row for chunk in some for row in chunk.frame.rows()]


def test_s3_is_read_by_object_folder_and_pattern(s3):
    upload(s3, "a/x.csv", gzip.compress(CSV))
    upload(s3, "a/split/0000001.csv", CSV[:14])
    upload(s3, "a/split/0000002.csv", CSV[:8] + CSV[14:])
    upload(s3, "a/split/", b"")
    upload(s3, "z.csv.zip", zipped({"a.csv": CSV}))
    assert s3_rows(f"{s3.url}/a/x.csv") == PEOPLE
    assert s3_rows(f"{s3.url}/z.csv.zip") == PEOPLE
    assert len(s3_rows(f"{s3.url}/a/split/")) == 2
    assert len(s3_rows(f"{s3.url}/a/split")) == 2
    assert len(s3_rows(f"{s3.url}/a/split/*.csv")) == 2


def test_s3_markers_and_changes_are_seen(s3):
    upload(s3, "a/x.csv", CSV)
    soon = datetime.now(UTC) + timedelta(seconds=5)
    with pytest.raises(ExportNotReadyError):
        find(f"{s3.url}/a/x.csv", settle=SETTLE, now=soon)
    upload(s3, "a/x.DONE", b"")
    delivery = find(f"{s3.url}/a/x.csv", settle=SETTLE, now=soon)
    upload(s3, "a/x.csv", CSV.replace(b"A", b"B"))
    reading = read(delivery, Dialect(), max_unpacked=ENOUGH)
    assert refusal(lambda: list(reading), ExportNotReadyError) == (
        "has been written again since it was found"
    )
    with pytest.raises(ExportNotReadyError, match="there is no export yet"):
        find(f"{s3.url}/b", settle=SETTLE, now=soon)


def test_an_object_that_is_a_folder_as_well_is_refused(s3):
    upload(s3, "x.csv", CSV)
    upload(s3, "x.csv/0000001.csv", CSV)
    assert refusal(lambda: s3_rows(f"{s3.url}/x.csv")).startswith("is an object and a")


@pytest.fixture
def sftp(tmp_path):
    with sftp_server(tmp_path) as (port, connections):
        password = quote(PASSWORD, safe="")
        yield f"sftp://{USER}:{password}@127.0.0.1:{port}"
        gc.collect()
        for connection in connections:
            connection.join(5)
            assert not connection.is_active(), "a connection was left open"


def test_sftp_is_read_and_its_password_is_never_shown(tmp_path, sftp):
    body = b"id,name\n" + b"".join(b"%d,%d\n" % (n, n) for n in range(20_000))
    write(tmp_path / "out" / "0000001.csv", body)
    write(tmp_path / "out" / "0000002.csv", zipped({"a": CSV}))
    delivery = found(f"{sftp}/out")
    some = list(read(delivery, Dialect(), max_unpacked=ENOUGH))
    assert [(chunk.part, chunk.frame.height) for chunk in some] == [
        ("0000001.csv", 20_000),
        ("0000002.csv!a", 2),
    ]
    with pytest.raises(ExportNotReadyError) as caught:
        found(f"{sftp}/none")
    shown = f"{delivery!r} {some!r} {caught.value} {caught.value.args}"
    assert USER not in shown
    assert "pa%3A" not in shown
    assert "pa:ss" not in shown


def test_a_wrong_sftp_password_is_a_matter_of_credentials(sftp):
    wrong = sftp.replace("word", "wort")
    with pytest.raises(ExportError) as caught:
        found(f"{wrong}/out")
    assert caught.value.reason == (
        "cannot be read (AuthenticationException); see to URL and credentials"
    )
    assert "wort" not in str(caught.value)


def test_sftp_without_paramiko_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "paramiko", None)
    monkeypatch.delitem(sys.modules, "fsspec.implementations.sftp", raising=False)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "sftp", raising=False)  # noqa: SLF001
    assert "pip install currents-ingest[sftp]" in refusal(
        lambda: found("sftp://u:p@127.0.0.1/x")
    )


@pytest.fixture
def web(tmp_path):
    handler = partial(QuietHandler, directory=tmp_path)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield f"http://u:secret@127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def test_a_signed_web_address_is_read_and_never_shown(tmp_path, web):
    write(tmp_path / "x.csv", CSV)
    url = f"{web}/x.csv?signature=secret"
    assert refusal(lambda: found(url)).startswith("the store does not say when")
    delivery = found(url, settle=timedelta(0))
    (chunk,) = read(delivery, Dialect(), max_unpacked=ENOUGH)
    assert chunk.frame.rows() == PEOPLE
    assert "secret" not in f"{delivery!r} {chunk!r}"


class Unlisted(fsspec.implementations.memory.MemoryFileSystem):
    """A store that gives objects, and whose folders may not be listed."""

    protocol = "unlisted"

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.replace("unlisted:", "memory:"))

    def find(self, *_, **__):
        raise NotADirectoryError

    def ls(self, *_, **__):
        raise PermissionError


def test_an_object_is_read_where_nothing_may_be_listed():
    fsspec.register_implementation("unlisted", Unlisted, clobber=True)
    with fsspec.open("memory://deep/x.csv", "wb") as file:
        file.write(CSV)
    delivery = find("unlisted://deep/x.csv", settle=timedelta(0), now=NOW)
    assert names(delivery) == ["x.csv"]


class FileExpired(OSError):  # noqa: N818 (s3fs names it so)
    """What s3fs raises when an object was replaced while it was read."""


@pytest.mark.parametrize(
    ("error", "becomes", "reason"),
    [
        (PermissionError(), ExportError, "the store refuses access; see to the cred"),
        (FileNotFoundError(), ExportNotReadyError, "is no longer there"),
        (FileExpired(), ExportNotReadyError, "has been written again since it was"),
        (TimeoutError(), ExportNotReadyError, "cannot be read just now (TimeoutErr"),
        (ImportError(name="adlfs"), ExportError, "reading it needs adlfs that is no"),
        (KeyError("pw"), ExportError, "cannot be read (KeyError); see to URL and"),
    ],
)
def test_what_a_store_raises_is_told_by_what_to_do(error, becomes, reason):
    def fail():
        with told("x"):
            raise error

    assert refusal(fail, becomes).startswith(reason)


def test_any_fsspec_url_is_read():
    with fsspec.open("memory://in/x.csv", "wb") as file:
        file.write(CSV)
    delivery = find("memory://in/x.csv", settle=timedelta(0), now=NOW)
    (chunk,) = read(delivery, Dialect(), max_unpacked=ENOUGH)
    assert chunk.frame.rows() == PEOPLE


def test_a_url_that_nothing_reads_is_refused():
    assert refusal(lambda: found("gopher://u:p@host/x")).startswith("cannot be read")


def test_no_more_is_held_than_a_few_blocks(tmp_path):
    rng = random.Random(1)
    lines = b"".join(b"%d,%d\n" % (n, rng.getrandbits(60)) for n in range(100_000))
    body = gzip.compress(b"a,b\n") + 50 * gzip.compress(lines, 1)
    delivery = found(write(tmp_path / "x", body))
    tracemalloc.start()
    reading = read(delivery, Dialect(), max_unpacked=ENOUGH)
    total = sum(chunk.frame.height for chunk in reading)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total == 5_000_000
    assert 50 * len(lines) > 120_000_000
    assert peak < 9 * BLOCK
