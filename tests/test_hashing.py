from __future__ import annotations

import hashlib
import sys
import unicodedata

import polars as pl
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from currents_ingest.hashing import digest, numbers, sha256
from currents_ingest.privacy import REDACTED


def hex_of(text):
    return hashlib.sha256(text.encode()).hexdigest()


X = hex_of("x")
TEXTS = st.text(
    st.characters(exclude_categories=["Cs"], max_codepoint=0xFFFF).filter(
        lambda one: unicodedata.ucd_3_2_0.category(one) != "Cn"
    )
)
"""Characters whose lower case every Unicode of this century agrees on."""


def hashed(texts, expression=sha256):
    frame = pl.DataFrame({"text": texts}, schema={"text": pl.String})
    return frame.select(expression(pl.col("text")))["text"].to_list()


@pytest.mark.parametrize(
    ("given_", "wanted"),
    [
        pytest.param("x", X, id="text"),
        pytest.param(" X\n", X, id="trimmed and lower-case"),
        pytest.param("\u2003X\u00a0", X, id="any white space"),
        pytest.param("", "", id="empty"),
        pytest.param(" \t", " \t", id="blank"),
        pytest.param(REDACTED, REDACTED, id="redacted"),
        pytest.param(X, X, id="hashed already"),
        pytest.param(X.upper(), X.upper(), id="hashed already, in capitals"),
        pytest.param(f"{X}0", hex_of(f"{X}0"), id="longer"),
        pytest.param(f"{X}\nx", hex_of(f"{X}\nx"), id="lines"),
    ],
)
def test_personal_texts_are_hashed_as_ad_platforms_want_it(given_, wanted):
    assert hashed([given_, None]) == [wanted, None]
    assert digest(given_) == wanted


@given(st.lists(TEXTS))
@example(["ΟΔΟΣ", "ΣΑΣ.", "İ", "\x1c x", "ß"])
def test_a_column_is_hashed_as_each_of_its_texts_is(texts):
    assert hashed(texts) == [digest(text) for text in texts]


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]))))
def test_without_polars_hash_texts_have_the_same_hashes(texts):
    def order(text):
        return numbers(text, 500_000)

    native = hashed(texts), hashed(texts, order)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "polars_hash", None)
        assert (hashed(texts), hashed(texts, order)) == native


def test_numbers_are_the_same_everywhere_and_below_their_bound():
    found = hashed(["a", "b", "", None], lambda text: numbers(text, 500_000))
    wanted = [int(hex_of(text)[:8], 16) % 500_000 for text in ("a", "b", "")]
    assert found == [*wanted, None]
