"""The tables of the cache file, which is dropped and rebuilt rather than migrated."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import sqlite3

VERSION = "5"

_TABLES = """
create table meta (name text primary key, value text) without rowid;
create table files (key text, etag text, size integer, hour integer, event_type text,
  entry integer, state text, reason text, primary key (key, etag, size)) without rowid;
create index files_by_state on files (state) where state <> 'done';
create table hours (event_type text, hour integer, object text, queued_from integer,
  queued_to integer, entry integer, primary key (event_type, hour, object))
  without rowid;
create table contracts (feed text primary key, body text) without rowid;
create table unified (feed text primary key, body text) without rowid;
create table shares (feed text primary key, objects integer, rows integer,
  rejects integer, bytes integer, committed_at text) without rowid;
create table unjoined (feed text, object text, event_type text, first integer,
  last integer, committed_at integer, primary key (feed, object)) without rowid;
create table delivered (feed text primary key, day integer) without rowid;
create table totals (event_type text primary key, feed text, files integer,
  rows_in integer, rows_out integer, duplicates integer, rejects integer,
  bytes integer, watermark integer, committed_at text) without rowid;
create table schemas (fingerprint text, event_type text, seen text, body text,
  primary key (fingerprint, event_type)) without rowid;
create table pace (day integer, event_type text, queued text, read text,
  duplicates text, rejects text, unfit text, wait text, delay text,
  primary key (day, event_type)) without rowid;
create table loaded (kind text, event_type text, day integer, rows integer,
  primary key (kind, event_type, day)) without rowid;
create table months (kind text, event_type text, month text, rows integer,
  small integer, primary key (kind, event_type, month)) without rowid;
"""


def prepare(connection: sqlite3.Connection, url: str) -> None:
    """Keep a cache of this version and ledger, else start it anew."""
    connection.isolation_level = None
    connection.execute("pragma synchronous = normal")
    tables = connection.execute("select name from sqlite_master").fetchall()
    held = ("meta",) in tables
    found = dict(connection.execute("select name, value from meta") if held else ())
    if (found.get("version"), found.get("url")) != (VERSION, url):
        reset(connection, url)


def reset(connection: sqlite3.Connection, url: str) -> None:
    """Empty a cache."""
    connection.execute("begin immediate")
    tables = connection.execute(
        "select name from sqlite_master where type = 'table'"
    ).fetchall()
    for (name,) in tables:
        connection.execute(f"drop table {name}")
    for statement in _TABLES.split(";"):
        connection.execute(statement)
    connection.executemany(
        "insert into meta values (?, ?)", [("version", VERSION), ("url", url)]
    )
    connection.execute("commit")
