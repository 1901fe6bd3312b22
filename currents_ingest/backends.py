"""From a URL to an obstore client, with credentials as boto3 finds them."""

from __future__ import annotations

import json
import os
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from obstore.store import LocalStore, MemoryStore, S3Store, from_url

from currents_ingest.errors import SettingsError, StoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import boto3
    import botocore.session
    from obstore.store import ObjectStore

QUEUE_BATCH = 10
"""Messages of one request; SQS's own limit."""
QUEUE_REQUESTS = 8
"""Requests to a queue at once."""


@cache
def _memory(name: str) -> MemoryStore:  # noqa: ARG001 (the name is the cache's key)
    return MemoryStore()


def open_backend(url: str) -> ObjectStore:
    """Open what a URL names; a plain path is a folder. Touches no object yet."""
    if (path := local_path(url)) is not None:
        return LocalStore(path, mkdir=True)
    parts = urlsplit(url)
    if parts.scheme == "memory":
        return _memory(url)
    if parts.scheme == "s3":
        return _s3(parts.netloc, parts.path.strip("/"))
    return from_url(url, retry_config=_retry_config())


def local_path(url: str) -> Path | None:
    """Return the path that a URL names; None if it names no local one."""
    parts = urlsplit(url)
    if len(parts.scheme) > 1 and parts.scheme != "file":  # C:\... is a path
        return None
    return Path(unquote(parts.path) if parts.scheme == "file" else url).absolute()


def session() -> boto3.session.Session:
    """Return AWS access as the usual chain finds it."""
    import boto3  # takes half a second, and only S3 needs it

    return boto3.session.Session()


def pages_by_boto3(url: str, prefix: str, after: str) -> Iterator[list[dict[str, Any]]]:
    """List a folder of S3 with boto3; key, etag, size and modified of each object."""
    parts = urlsplit(url)
    root = parts.path.strip("/")
    base = f"{root}/" if root else ""
    pages = (
        session()
        .client("s3")
        .get_paginator("list_objects_v2")
        .paginate(
            Bucket=parts.netloc,
            Prefix=f"{base}{prefix}/" if prefix else base,
            StartAfter=f"{base}{after}" if after else "",
        )
    )
    for page in pages:
        yield [
            {
                "key": one["Key"].removeprefix(base),
                "etag": one["ETag"],
                "size": one["Size"],
                "modified": one["LastModified"],
            }
            for one in page.get("Contents", ())
        ]


def _s3(bucket: str, prefix: str) -> S3Store:
    """Open S3 as the AWS chain says: profile, SSO, role, AWS_ENDPOINT_URL.

    It is asked anew each time: whoever rotates credentials is heard.
    """
    with _told("find access to", f"s3://{bucket}"):
        endpoint, access = _by_environment() or _by_chain()
    return S3Store(
        bucket,
        prefix=prefix or None,
        retry_config=_retry_config(),
        client_options={"allow_http": endpoint.startswith("http://")},
        config={"endpoint": endpoint} if endpoint else None,
        **access,
    )


_REGION = "us-east-1"
"""Where nobody says another."""
_BOTH = {"access_key_id", "secret_access_key"}
_KEYS = {
    "access_key_id": "AWS_ACCESS_KEY_ID",
    "secret_access_key": "AWS_SECRET_ACCESS_KEY",
    "session_token": "AWS_SESSION_TOKEN",
    "region": "AWS_DEFAULT_REGION",
}
_FILES = {
    "AWS_CONFIG_FILE": "~/.aws/config",
    "AWS_SHARED_CREDENTIALS_FILE": "~/.aws/credentials",
}
_ENDPOINTS = "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"
_CHAIN_ONLY = {
    "AWS_PROFILE",
    "AWS_DEFAULT_PROFILE",
    "AWS_SECURITY_TOKEN",
    "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS",
}
"""Variables that we leave to botocore to understand."""


def _by_environment() -> tuple[str, dict[str, str]] | None:
    """Return endpoint and access if variables say both keys, and no file more.

    It is what the chain would say, and botocore takes a tenth of a second or two.
    """
    told = os.environ
    found = {name: told[key] for name, key in _KEYS.items() if told.get(key)}
    # Not as a Path: that fails where there is no home, as for any user of a container.
    files = [os.path.expanduser(told.get(*pair)) for pair in _FILES.items()]  # noqa: PTH111
    more = told.keys() & _CHAIN_ONLY or any(Path(file).is_file() for file in files)
    if more or not found.keys() >= _BOTH:
        return None
    endpoint = next(filter(None, map(told.get, _ENDPOINTS)), "")
    return endpoint, {"region": _REGION} | found


def _by_chain() -> tuple[str, dict[str, Any]]:
    """Return endpoint and access as botocore finds them."""
    from botocore.session import get_session
    from obstore.auth.boto3 import Boto3CredentialProvider

    chain = get_session()
    return _endpoint(chain), {
        "region": chain.get_config_variable("region") or _REGION,
        "credential_provider": Boto3CredentialProvider(chain),
    }


def _endpoint(chain: botocore.session.Session) -> str:
    """Return the address of S3 that is configured, if one is.

    A client of boto3 knows it too, but takes a tenth of a second to make. Source: AWS
    SDKs and Tools Reference Guide, "Service-specific endpoints".
    """
    if chain.get_config_variable("ignore_configured_endpoint_urls"):
        return ""
    profile = chain.get_scoped_config()
    services = chain.full_config.get("services", {}).get(profile.get("services"), {})
    told = (
        *map(os.environ.get, _ENDPOINTS),
        services.get("s3", {}).get("endpoint_url"),
        profile.get("endpoint_url"),
    )
    return next(filter(None, told), "")


def _retry_config() -> Any:
    return {
        "max_retries": 4,
        "retry_timeout": timedelta(seconds=60),
    }


@dataclass(frozen=True, slots=True)
class Queue:
    """A queue of SQS, ``sqs://<region>/<account>/<name>``; every call may raise.

    Raises:
        StoreError: It cannot be reached, or does not let us.
    """

    url: str
    _client: Any
    _at: str

    @staticmethod
    def open(url: str) -> Queue:
        """Open a queue; touches nothing yet."""
        from botocore.config import Config

        region, _, path = url.removeprefix("sqs://").partition("/")
        with _told("open", url):
            client = session().client(
                "sqs",
                region_name=region,
                config=Config(max_pool_connections=QUEUE_REQUESTS),
            )
        return Queue(url, client, f"{client.meta.endpoint_url.rstrip('/')}/{path}")

    def receive(self, *, hidden: int, wait: int = 0) -> list[tuple[str, str]]:
        """Return up to ten messages, each its receipt handle and its body.

        Args:
            hidden: Seconds for which nobody else receives them.
            wait: Seconds to wait for the first; with 0 SQS may overlook some.
        """
        with _told("receive from", self.url):
            found = self._client.receive_message(
                QueueUrl=self._at,
                MaxNumberOfMessages=QUEUE_BATCH,
                VisibilityTimeout=hidden,
                WaitTimeSeconds=wait,
            )
        return [
            (one["ReceiptHandle"], one["Body"]) for one in found.get("Messages", ())
        ]

    def delete(self, handles: Sequence[str]) -> int:
        """Delete up to ten messages; return how many are there still."""
        with _told("delete from", self.url):
            return len(self._batch(self._client.delete_message_batch, handles))

    def hide(self, handles: Sequence[str], seconds: int) -> int:
        """Hide up to ten messages from now on, 0: show them; return how many failed."""
        with _told("change the visibility in", self.url):
            call = self._client.change_message_visibility_batch
            return len(self._batch(call, handles, VisibilityTimeout=seconds))

    def about(self) -> dict[str, str]:
        """Return its attributes, by AWS's names."""
        with _told("look at", self.url):
            found: dict[str, str] = self._client.get_queue_attributes(
                QueueUrl=self._at, AttributeNames=["All"]
            )["Attributes"]
        return found

    def depth(self) -> tuple[int, int]:
        """Return about how many messages wait, and how many someone has in hand."""
        found = self.about()
        name = "ApproximateNumberOfMessages"
        waiting = int(found[name]) + int(found.get(f"{name}Delayed", 0))
        return waiting, int(found[f"{name}NotVisible"])

    def _batch(
        self, call: Callable[..., Any], handles: Sequence[str], **more: int
    ) -> list[str]:
        """Return the handles that a request of several did not take, tried twice."""
        for _ in range(2):
            entries = [
                {"Id": str(at), "ReceiptHandle": one, **more}
                for at, one in enumerate(handles)
            ]
            failed = call(QueueUrl=self._at, Entries=entries).get("Failed", ())
            if not failed:
                return []
            handles = [handles[int(one["Id"])] for one in failed]
        return list(handles)


def notified(bucket: str) -> Mapping[str, Any]:
    """Return whom a bucket of S3 notifies, as AWS tells it; raises StoreError."""
    with _told("read the notifications of", f"s3://{bucket}"):
        client = session().client("s3")
        return client.get_bucket_notification_configuration(Bucket=bucket)


def invoke(function: str, event: Mapping[str, Any]) -> None:
    """Call an AWS Lambda function and do not wait for it; raises StoreError."""
    with _told("call", f"the function {function}"):
        session().client("lambda").invoke(
            FunctionName=function, InvocationType="Event", Payload=json.dumps(event)
        )


def secrets(name: str) -> dict[str, str]:
    """Return what a secret of AWS Secrets Manager holds: a JSON object of texts.

    Raises:
        StoreError: It cannot be read.
        SettingsError: It is no such object.
    """
    with _told("read", f"the secret {name}"):
        got = session().client("secretsmanager").get_secret_value(SecretId=name)
    try:
        found = json.loads(got["SecretString"])
        return {str(key): str(value) for key, value in found.items()}
    except (KeyError, ValueError, AttributeError):  # whose text may quote it
        problem = f'the secret {name} is not JSON such as {{"BRAZE_API_KEY": "..."}}'
    raise SettingsError((problem,))


@contextmanager
def _told(action: str, what: str) -> Iterator[None]:
    """Make AWS's errors ours."""
    try:
        yield
    except Exception as error:
        from botocore.exceptions import BotoCoreError, ClientError

        if isinstance(error, BotoCoreError | ClientError):
            raise StoreError(action, what, str(error)) from error
        raise
