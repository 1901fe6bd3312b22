"""SHA-256 of texts: of personal fields, and as an order that nobody chose."""

from __future__ import annotations

import hashlib
import re

import polars as pl

from currents_ingest.privacy import REDACTED

_DIGEST = re.compile("[0-9a-f]{64}")
_WHITE = (
    "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008"
    "\u2009\u200a\u2028\u2029\u202f\u205f\u3000"
)
"""What Polars strips: Unicode's White_Space; Python's strip() takes four more."""


def sha256(texts: pl.Expr) -> pl.Expr:
    """Hash texts as ad platforms want it: SHA-256 of the trimmed, lower-case text.

    An empty text, and what a connector put in a text's place, tell of nobody and stay;
    so does what is such a hash already, by a connector or in an object of ours.
    """
    texts = texts.cast(pl.String)
    plain = texts.str.strip_chars().str.to_lowercase()
    stays = plain.is_in(["", REDACTED.lower()]) | plain.str.contains(
        f"^{_DIGEST.pattern}$"
    )
    return pl.when(stays).then(texts).otherwise(_hex(plain))


def digest(text: str) -> str:
    """Hash one text likewise."""
    plain = text.strip(_WHITE).lower()
    if plain in ("", REDACTED.lower()) or _DIGEST.fullmatch(plain):
        return text
    return hashlib.sha256(plain.encode()).hexdigest()


def numbers(texts: pl.Expr, below: int) -> pl.Expr:
    """Return a number for each text, the same wherever and whenever it is asked for."""
    return _hex(texts).str.head(8).str.to_integer(base=16) % below


def _hex(texts: pl.Expr) -> pl.Expr:
    try:
        from polars_hash import CryptographicHashingNameSpace
    except ImportError:  # it has no wheel for this platform
        return texts.map_batches(_one_by_one, pl.String, is_elementwise=True)
    return CryptographicHashingNameSpace(texts).sha2_256()


def _one_by_one(texts: pl.Series) -> pl.Series:
    found = [
        None if one is None else hashlib.sha256(one.encode()).hexdigest()
        for one in texts
    ]
    return pl.Series(texts.name, found, dtype=pl.String)
