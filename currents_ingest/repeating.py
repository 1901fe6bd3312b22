"""Which failures of a store are worth asking again, and asking again.

object_store repeats 5xx and refused connections itself, but not a body that breaks off;
so every call is repeated here as well, a few times, with growing pauses.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, TypeVar

from obstore import exceptions as oe

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

ATTEMPTS = 6

_FINAL = (
    FileNotFoundError,
    PermissionError,
    oe.AlreadyExistsError,
    oe.InvalidPathError,
    oe.NotFoundError,
    oe.NotSupportedError,
    oe.PermissionDeniedError,
    oe.PreconditionError,
    oe.UnauthenticatedError,
)
"""Answers that asking again does not change."""

_REFUSALS = re.compile(
    r"status code: 40[13]\b|ExpiredToken|InvalidToken|NoSuchBucket|get_credentials|"
    r"NoCredentials|TokenRetrieval|UnauthorizedSSOToken"
)
"""How refusals read that come as other errors: obstore's of a listing, boto3's."""


def refused(error: BaseException) -> bool:
    """Tell whether we are not let in, or are nobody there."""
    denied = PermissionError, oe.PermissionDeniedError, oe.UnauthenticatedError
    return isinstance(error, denied) or bool(_REFUSALS.search(str(error)))


def worth_repeating(error: BaseException) -> bool:
    """Tell whether the same request may succeed later."""
    ours = isinstance(error, oe.BaseError | OSError)
    return ours and not isinstance(error, _FINAL) and not refused(error)


def repeated(call: Callable[[], T]) -> T:
    """Call, again and again while that is worth it; raises what came last.

    The first time is without tenacity, which takes more time than the request itself,
    and longer than that to import.
    """
    try:
        return call()
    except Exception as error:
        if not worth_repeating(error):
            raise
    import tenacity

    again = tenacity.Retrying(
        retry=tenacity.retry_if_exception(worth_repeating),
        stop=tenacity.stop_after_attempt(ATTEMPTS),
        wait=tenacity.wait_random_exponential(multiplier=0.1, max=5),
        reraise=True,
    )
    return again(call)
