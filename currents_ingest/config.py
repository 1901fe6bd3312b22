"""Settings, checked once before any work.

They come from ``currents.toml``; each value may also come from the environment, as
``CURRENTS_FEEDS__URL`` for ``url`` in ``[feeds]``, and the environment wins.
"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, ValidationError, model_validator
from pydantic.json_schema import GenerateJsonSchema
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)
from pydantic_settings import SettingsError as SourceError

from currents_ingest import units
from currents_ingest.audience_config import Audience, Braze
from currents_ingest.crontab import CronText, Zone  # noqa: TC001 (pydantic reads it)
from currents_ingest.errors import SettingsError
from currents_ingest.privacy import Choice  # noqa: TC001 (pydantic reads it)
from currents_ingest.units import Address, Duration, Period, Section, Size

if TYPE_CHECKING:
    from collections.abc import Mapping

DEFAULT_PATH = Path("currents.toml")


class Source(Section):
    """Where Currents writes."""

    url: str = Field(
        min_length=1,
        description="Folder that holds dataexport.*: s3://, gs://, az://, file://, "
        "memory:// or a path.",
    )
    lookback: Duration = Field(
        default=timedelta(hours=48),
        description="How far behind the newest ingested hour each poll looks for files "
        "that came late.",
    )
    queue: units.QueueUrl = Field(
        default="",
        description="sqs://REGION/ACCOUNT/NAME that S3 notifies; see docs/queue.md.",
    )
    reconcile: Duration = Field(
        default=timedelta(days=1),
        description="How often a poll lists everything, to find what was missed.",
    )
    events: tuple[str, ...] = Field(
        default=("*",), description="Which event types to ingest, by glob."
    )

    @model_validator(mode="after")
    def _queue_tells_of_s3(self) -> Self:
        if self.queue and not self.url.startswith("s3://"):
            raise ValueError("queue takes what S3 notifies, so url has to be s3://")
        return self


class Feeds(Section):
    """Where the Parquet feeds, the ledger and the index go."""

    url: str = Field(min_length=1, description="Same forms as source.url.")
    include: tuple[str, ...] = Field(
        default=("raw", "email_events"),
        description="Which feeds to make, by glob; raw is every event type's own.",
    )
    contracts: tuple[str, ...] = Field(
        default=(),
        description="Folders of your own contracts of unified feeds, <feed>.toml; same "
        "forms as source.url. One named like a shipped one takes its place.",
    )
    options: dict[str, dict[str, str]] = Field(
        default={},
        description="Options of unified feeds by feed; `feeds contract` lists them.",
    )
    max_wait: Duration = Field(
        default=timedelta(0),
        description="How long a poll may hold files back until those of their event "
        "type fill target_size; 0s holds nothing back.",
    )
    target_size: Size = Field(
        default=256 * 10**6,
        ge=10**6,
        description="Bytes of Currents files that are worth an object, and the most "
        "that go into one; limits.memory may allow less.",
    )
    empty_objects: bool = Field(
        default=False,
        description="Write an object without rows at the first poll of a day that has "
        "nothing for a feed, so that no courier misses a file.",
    )
    daily_copy: bool = Field(
        default=False,
        description="Copy each object to <feed>_<yyyy-MM-dd>.parquet/ as well, for "
        "couriers that take a day's directory.",
    )
    dedupe_horizon: Duration = Field(
        default=timedelta(days=45),
        description="How far apart, in queued time, two deliveries of one event may "
        "lie and still be recognised.",
    )
    max_reject_share: float = Field(
        default=0.01,
        ge=0,
        le=1,
        description="A batch with a larger share of rejected rows gives none of its "
        "offending files' rows; they wait in quarantine.",
    )


class Brands(Section):
    """Which brand and region a row belongs to, in unified feeds."""

    default: str = Field(
        default="default",
        min_length=1,
        description="Brand of every row that no name below fits.",
    )
    names: dict[str, str] = Field(
        default={},
        description="Brand by subscription group id, app group id or sending domain; "
        "the first of these that is named counts.",
    )
    region: str = Field(
        default="", description="Region of every row that no name below fits, if any."
    )
    regions: dict[str, str] = Field(
        default={}, description="Region by the same names as in names."
    )


class Privacy(Section):
    """What becomes of personal data; a field that is not named is kept."""

    fields: dict[str, Choice] = Field(
        default={},
        description="keep, hash (SHA-256 of the trimmed, lower-case text) or drop, by "
        "Braze's field name, in every feed.",
    )
    feeds: dict[str, dict[str, Choice]] = Field(
        default={}, description="The same for single feeds, by name; this counts more."
    )


class Schemas(Section):
    """Which writer schemas are known."""

    urls: tuple[str, ...] = Field(
        default=(),
        description="Folders of your own schemas, <event type>/<NNN>.avsc, beside the "
        "shipped ones; same forms as source.url. `schemas learn` writes to the first.",
    )
    shipped: bool = Field(
        default=True,
        description="Whether the package's own schemas count; false: only yours do, so "
        "that a new release of the package changes nothing.",
    )


class LedgerSettings(Section):
    """How the ledger is cached and guarded."""

    cache: Path = Field(
        default=Path(".currents/cache.db"),
        description="SQLite file; only a cache, delete it at will.",
    )
    lease: Duration = Field(
        default=timedelta(seconds=60),
        description="How long a run that stopped answering keeps others waiting; "
        "0s turns the lease off (the ledger alone guards).",
    )


class Limits(Section):
    """What the process may use."""

    memory: Size = Field(
        default=2 * 10**9,
        ge=256 * 10**6,
        description="Peak memory of the process, in bytes; kept from 1GB on.",
    )
    concurrency: int = Field(
        default=128, ge=1, le=4096, description="Requests in flight."
    )


class RunSettings(Section):
    """What `run` does, and when; audiences have schedules of their own."""

    poll_every: Period = Field(
        default=timedelta(minutes=5), description="How often to poll."
    )
    poll_cron: CronText = Field(
        default="",
        description="When to poll, in place of poll_every, as in */10 * * * *.",
    )
    time_zone: Zone = Field(
        default="UTC", description="Of every cron, as in Europe/Berlin."
    )
    listen: Address = Field(
        default="127.0.0.1:9464",
        description="Address of /metrics, /healthz, /readyz and the report, if any.",
    )


class Amperity(Section):
    """What to tell and to ask Amperity after delivery; nothing without a tenant."""

    url: str = Field(
        default="https://app.amperity.com/api",
        pattern=r"^(https://|http://127\.0\.0\.1[:/])",
        description="Base URL of Amperity's API.",
    )
    tenant: str = Field(default="", description="Tenant; empty: Amperity is not asked.")
    token_env: str = Field(
        default="AMPERITY_TOKEN",
        description="Environment variable that holds the access token.",
    )
    workflow: str = Field(
        default="",
        description="Courier group (cg-...) to start when objects are out, if any.",
    )
    run_mode: Literal["", "full", "refresh", "source"] = Field(
        default="", description="How it runs; empty: as the group is set up."
    )
    start_every: Duration = Field(
        default=timedelta(hours=1),
        description="How long to wait at least between two starts.",
    )
    reconcile: bool = Field(
        default=False,
        description="Compare what Amperity read of each object with what was written: "
        "in status, and as a warning once a day.",
    )
    read_within: Duration = Field(
        default=timedelta(hours=36),
        description="How long after its delivery an object should have been read.",
    )


class Settings(BaseSettings):
    """Everything that a run needs to know; frozen."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        env_prefix="CURRENTS_",
        env_nested_delimiter="__",
        title="currents-ingest configuration",
    )
    file: ClassVar[Path | None] = None
    alone: ClassVar[bool] = False
    """Only arguments count, whatever file and environment say."""

    source: Source
    feeds: Feeds
    brands: Brands = Brands()
    privacy: Privacy = Privacy()
    schemas: Schemas = Schemas()
    ledger: LedgerSettings = LedgerSettings()
    limits: Limits = Limits()
    run: RunSettings = RunSettings()
    amperity: Amperity = Amperity()
    braze: Braze = Braze()
    audiences: dict[str, Audience] = Field(
        default={}, description="Audiences by name: [audiences.NAME]."
    )

    @model_validator(mode="after")
    def _waits_within_the_lookback(self) -> Self:
        read = isinstance(self.source, Source) and isinstance(self.feeds, Feeds)
        if read and self.feeds.max_wait >= self.source.lookback:
            raise ValueError(
                "feeds.max_wait must be shorter than source.lookback: a poll lists no "
                "further back, so what waits longer would be found a day later"
            )
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 (not read)
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 (not read)
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Order the sources: arguments, environment, file."""
        if cls.alone:
            return (init_settings,)
        return (
            init_settings,
            env_settings,
            TomlConfigSettingsSource(settings_cls, toml_file=cls.file),
        )


class _SchemasOnly(Settings):
    """Just ``[schemas]``, for commands that need no bucket."""

    model_config = SettingsConfigDict(extra="ignore")
    source: Any = None
    feeds: Any = None
    brands: Any = None
    privacy: Any = None
    ledger: Any = None
    limits: Any = None
    run: Any = None
    amperity: Any = None
    braze: Any = None
    audiences: Any = None


class _AudiencesOnly(Settings):
    """What the way back needs: no Currents source."""

    source: Any = None


def read_audiences(path: Path | None = None, **overrides: Any) -> Settings:
    """Read settings where ``[source]`` may be missing; raises as read does."""
    return _read(_AudiencesOnly, path, overrides)


def audience(name: str, values: Mapping[str, Any]) -> Audience:
    """Make an audience of single values; raises as read does."""
    try:
        return Audience(**values)
    except ValidationError as error:
        raise SettingsError(
            tuple(f"audiences.{name}: {_plain(one)}" for one in error.errors())
        ) from None


def read_schemas(path: Path | None = None) -> Schemas:
    """Read ``[schemas]`` alone, where the rest may be missing; raises as read does."""
    return _read(_SchemasOnly, path, {}).schemas


def given(**values: Any) -> Settings:
    """Make settings of values alone; raises as read does."""
    return _read(Settings, None, values, alone=True)


def read(path: Path | None = None, **overrides: Any) -> Settings:
    """Read settings from *path* (default: ``currents.toml``, if there is one).

    Raises:
        SettingsError: With every problem at once.
    """
    return _read(Settings, path, overrides)


def _read(
    kind: type[Settings],
    path: Path | None,
    overrides: dict[str, Any],
    *,
    alone: bool = False,
) -> Settings:
    if path is not None and not path.is_file():
        raise SettingsError((f"there is no file {path}; `init` writes one",))
    file = path or (DEFAULT_PATH if DEFAULT_PATH.is_file() else None)
    about = {"file": file, "alone": alone, "__doc__": kind.__doc__}
    model = type("Settings", (kind,), about)
    try:
        return model(**overrides)  # type: ignore[no-any-return]  # pydantic's own
    except ValidationError as error:
        raise SettingsError(
            tuple(_problem(one, file) for one in error.errors())
        ) from None
    except (SourceError, ValueError) as error:  # TOML that is none
        raise SettingsError((f"{file or 'the environment'}: {error}",)) from None


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of ``currents.toml``, for editors."""
    return Settings.model_json_schema(schema_generator=_Schema)


class _Schema(GenerateJsonSchema):
    """Writes default durations as people do."""

    def encode_default(self, dft: Any) -> Any:
        if not isinstance(dft, timedelta):
            return super().encode_default(dft)
        if not (seconds := int(dft.total_seconds())):
            return "0s"
        unit = max(
            (size, name) for name, size in units.UNITS.items() if seconds % size == 0
        )
        return f"{seconds // unit[0]}{unit[1]}"


def _plain(error: Any) -> str:
    where = ".".join(map(str, error["loc"]))
    said = "is no setting" if error["type"] == "extra_forbidden" else error["msg"]
    told = said.removeprefix("Value error, ")
    return f"{where}: {told}" if where else told


def _problem(error: Any, file: Path | None) -> str:
    where = ".".join(map(str, error["loc"]))
    if not where:
        return str(error["msg"].removeprefix("Value error, "))
    variable = "CURRENTS_" + "__".join(map(str, error["loc"])).upper()
    if error["type"] == "missing":
        return f"{where} is missing: set it in {file or DEFAULT_PATH} or as {variable}"
    if error["type"] == "extra_forbidden":
        return f"{where} is no setting; `currents-ingest init` lists those there are"
    return f"{where}: {error['msg'].removeprefix('Value error, ')}"
