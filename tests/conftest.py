"""Fixtures that more than one test module uses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import uuid4

import boto3
import pytest
from hypothesis import settings

from tests.audience_campaign import Place
from tests.campaign import s3_environment
from tests.sandbox_server import Sandbox, sandbox
from tests.servers import moto_server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


settings.register_profile("anywhere", deadline=None)  # a busy machine is no error
settings.load_profile("anywhere")


@dataclass(frozen=True, slots=True)
class Bucket:
    """An empty bucket of a running S3."""

    endpoint: str
    name: str

    @property
    def url(self) -> str:
        """Return what goes before a key."""
        return f"s3://{self.name}"


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """Run one S3 for all tests."""
    with moto_server() as endpoint:
        yield endpoint


@pytest.fixture
def s3(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """Make a bucket of the test's own, and point the AWS chain at its server."""
    for name, value in s3_environment(s3_endpoint).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    monkeypatch.delenv("AWS_SESSION_TOKEN", raising=False)
    bucket = Bucket(s3_endpoint, f"test-{uuid4()}")
    boto3.client("s3").create_bucket(Bucket=bucket.name)
    return bucket


@pytest.fixture(scope="session")
def running_sandbox() -> Iterator[Sandbox]:
    """Run one Braze for all tests."""
    with sandbox() as found:
        yield found


@pytest.fixture
def box(running_sandbox: Sandbox) -> Sandbox:
    """Empty the Braze that runs."""
    running_sandbox.reset()
    return running_sandbox


@pytest.fixture
def place(tmp_path: Path, box: Sandbox) -> Place:
    """Return a folder whose audience goes to the Braze that runs."""
    return Place(root=tmp_path, braze=box.url)
