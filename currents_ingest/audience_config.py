"""Settings of the way back: which Braze workspace, and which audiences."""

from __future__ import annotations

from datetime import timedelta
from typing import Literal, Self, get_args

from pydantic import Field, model_validator

from currents_ingest.crontab import CronText  # noqa: TC001 (pydantic reads it)
from currents_ingest.units import Duration, Period, Section, Size


class Braze(Section):
    """Which Braze workspace audiences go to, and how fast."""

    instance: str = Field(
        default="", description="Instance, such as US-03 (dashboard URL)."
    )
    url: str = Field(
        default="",
        pattern=r"^($|https://[^/?#@]+/*$|http://(127\.0\.0\.1|localhost|\[::1\])(:\d+)?/*$)",
        description="REST endpoint in place of instance; http:// only on this machine.",
    )
    workspace: str = Field(
        default="",
        pattern=r"^[A-Za-z0-9_.-]*$",
        description="A name of yours for the key's workspace, if you have several on "
        "one instance.",
    )
    api_key_env: str = Field(
        default="BRAZE_API_KEY",
        description="Environment variable that holds the REST API key (users.track).",
    )
    bulk: bool = Field(
        default=False,
        description="Send to /users/track/bulk, where Braze has opened it for you.",
    )
    batch_size: int = Field(
        default=0,
        ge=0,
        le=1000,
        description="Objects in one request; 0: what Braze takes, 75, or 1000 in bulk.",
    )
    request_size: Size = Field(
        default=4 * 10**6,
        ge=10**5,
        le=4 * 10**6,
        description="Bytes in one request, at most; in bulk half of it counts.",
    )
    rate: str = Field(
        default="",
        pattern=r"^([1-9]\d*/([1-9]\d*|\d+\.\d*[1-9])[smh])?$",
        description="Requests that the contract allows, as in 3000/3s or 250000/1h; "
        "left out: 3000/3s, or 50/1s in bulk.",
    )
    concurrency: int = Field(
        default=32, ge=1, le=1000, description="Requests in flight."
    )
    timeout: Duration = Field(
        default=timedelta(seconds=30), description="How long to wait for an answer."
    )
    patience: Duration = Field(
        default=timedelta(minutes=15),
        description="How long to go on asking where Braze does not answer; a limit "
        "that it names is waited for in any case.",
    )
    partner: str = Field(
        default="amperity",
        pattern=r"^[A-Za-z0-9_-]+$",
        description="Cohorts: the partner's name in Braze's addresses.",
    )
    partner_key_env: str = Field(
        default="BRAZE_PARTNER_KEY",
        description="Environment variable that holds the key which Braze gave the "
        "partner.",
    )
    data_import_key_env: str = Field(
        default="BRAZE_DATA_IMPORT_KEY",
        description="Environment variable that holds the data import key of the "
        "workspace (dashboard, Technology Partners).",
    )

    @model_validator(mode="after")
    def _fits_the_endpoint(self) -> Self:
        if self.batch_size > 75 and not self.bulk:
            raise ValueError("/users/track takes 75 objects; more need bulk = true")
        return self

    @property
    def most(self) -> int:
        """Return how many objects go into a request."""
        return self.batch_size or (1000 if self.bulk else 75)

    @property
    def room(self) -> int:
        """Return how many bytes of objects go into a request."""
        return self.request_size // (2 if self.bulk else 1) - 100

    @property
    def pace(self) -> str:
        """Return the rate."""
        return self.rate or ("50/1s" if self.bulk else "3000/3s")


Identifier = Literal[
    "external_id", "braze_id", "user_alias", "email", "phone", "device_id"
]
CohortIdentifier = Literal["external_id", "user_alias", "device_id"]
CellType = Literal[
    "string",
    "varchar",
    "integer",
    "float",
    "decimal",
    "boolean",
    "date",
    "datetime",
    "array",
    "object",
]


_ONLY_FOR = {
    "mode changed operations remove_when_empty merge_objects": "attributes",
    "membership": "attributes and cohort",
    "dedupe": "events and purchases",
    "otherwise cohort cohort_column cohort_file cohorts cohort_id without_partner": (
        "cohort"
    ),
}
"""Settings that mean nothing for other kinds."""


class Audience(Section):
    """One audience: what Amperity exports, and what Braze shall make of it."""

    kind: Literal["attributes", "cohort", "events", "purchases"] = Field(
        default="attributes", description="What a row is."
    )
    source: str = Field(
        min_length=1,
        description="File, folder or glob: s3://, sftp://, a path, or what fsspec "
        "knows.",
    )
    identifier: Identifier = Field(
        default="external_id",
        description="What names a person: the column of this name (user_alias: "
        "alias_name and alias_label; device_id: cohorts only).",
    )
    otherwise: tuple[CohortIdentifier, ...] = Field(
        default=(),
        description="Cohorts: what names a person whose identifier is NULL, in this "
        "order.",
    )
    alias_label: str = Field(
        default="", description="Alias label where the file has no column for it."
    )
    mode: Literal["upsert", "mirror"] = Field(
        default="upsert",
        description="mirror: people who left are changed, too: membership becomes "
        "false or, without membership, their custom attributes are removed.",
    )
    changed: Literal["attributes", "rows"] = Field(
        default="attributes",
        description="What is sent of a person who changed: the changed attributes or "
        "the whole row.",
    )
    membership: str = Field(
        default="",
        description="Custom attribute that is true for everyone in the file.",
    )
    update_existing_only: bool | None = Field(
        default=None,
        description="true: Braze creates no profile; false: it does, also for aliases; "
        "left out: Braze's own rule.",
    )
    merge_objects: bool = Field(
        default=False, description="Merge nested objects instead of replacing them."
    )
    columns: dict[str, str] = Field(
        default={},
        description='Braze name by file column; "" leaves the column out.',
    )
    constants: dict[str, str] = Field(
        default={},
        description="Columns that the file has not, with one value for every row.",
    )
    types: dict[str, CellType] = Field(
        default={}, description="Type by file column; left out: found out."
    )
    operations: dict[str, Literal["inc", "add", "remove"]] = Field(
        default={},
        description="By file column: inc adds to a number, once for each delivery; add "
        "and remove change an array.",
    )
    remove_when_empty: tuple[str, ...] = Field(
        default=(), description="File columns whose empty cells remove the attribute."
    )
    allow: tuple[str, ...] = Field(
        default=(),
        description="Subscription fields that may be sent, such as email_subscribe.",
    )
    phone_region: str = Field(
        default="",
        pattern="^([A-Z]{2})?$",
        description="Country of phone numbers without +, as in US.",
    )
    dedupe: str = Field(
        default="",
        description="Events and purchases: the file column that names one; left out: "
        "each row of a delivery counts once.",
    )
    cohort: str = Field(
        default="",
        description="Cohorts: its name in Braze; left out: the audience's. A new name "
        "renames the cohort.",
    )
    cohort_column: str = Field(
        default="", description="Cohorts: the file column that names each row's."
    )
    cohort_file: str = Field(
        default="",
        pattern=r"^($|[^{}]*\{cohort\}[^{}]*$)",
        description="Cohorts: how a file's name names its cohort, as in "
        "campaign-{cohort}-*.csv.",
    )
    cohorts: dict[str, str] = Field(
        default={},
        description='Cohorts: name in Braze by what the column or file says; "" leaves '
        "its rows out.",
    )
    cohort_id: str = Field(
        default="{name}",
        pattern=r"^[^{}]*\{name\}[^{}]*$",
        description="Cohorts: the id in Braze, fixed when a cohort is first sent; "
        "Amperity's own is amperity-{name}.",
    )
    without_partner: Literal["", "boolean", "array"] = Field(
        default="",
        description="Cohorts, where there is no partner key: keep members in a custom "
        "attribute, named by membership: true or false, or an array of cohort names.",
    )
    every: Period | None = Field(
        default=None,
        description="How often `run` sends it; left out, as cron is: only when asked.",
    )
    cron: CronText = Field(
        default="", description="When `run` sends it, as in 0 6 * * * (run.time_zone)."
    )
    max_reject_share: float = Field(
        default=0.01,
        ge=0,
        le=1,
        description="Nothing is sent if more rows than this share are rejected.",
    )
    max_shrink: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="Nothing is sent, without --force, if the export lost more people "
        "than this share.",
    )
    settle: Duration = Field(
        default=timedelta(seconds=60),
        description="How long an export without .DONE must have been still.",
    )
    max_unpacked: Size = Field(
        default=50 * 10**9, ge=1, description="Bytes of the export when unpacked."
    )
    format: Literal["", "csv", "tsv", "psv", "ndjson", "json", "parquet"] = Field(
        default="", description="Left out, as the next five are: found out."
    )
    delimiter: str = Field(default="", max_length=1, description="Between cells.")
    quote: str = Field(
        default='"', max_length=1, description="Around cells; empty: none."
    )
    escape: str = Field(
        default="",
        max_length=1,
        description="Before a quote within a cell; empty: it is doubled.",
    )
    header: bool = Field(
        default=True, description="Whether the first line names columns."
    )
    names: tuple[str, ...] = Field(
        default=(), description="Columns of a file without header."
    )
    encoding: str = Field(
        default="", description="Left out: by byte order mark, else UTF-8."
    )

    @property
    def of_people(self) -> bool:
        """Tell whether a row is a person; else it is something that happened."""
        return self.kind in {"attributes", "cohort"}

    @property
    def to_partner(self) -> bool:
        """Tell whether it goes to the partner cohort API."""
        return self.kind == "cohort" and not self.without_partner

    @model_validator(mode="after")
    def _fits_its_kind(self) -> Self:
        wrong = [
            f"{name} is for {kinds}"
            for names, kinds in _ONLY_FOR.items()
            if self.kind not in kinds.split()
            for name in names.split()
            if getattr(self, name) != type(self).model_fields[name].default
        ]
        if self.kind == "cohort":
            wrong += self._wrong_cohort()
        elif self.identifier == "device_id":
            wrong.append("identifier = device_id is for cohort")
        if self.every is not None and self.cron:
            wrong.append("every and cron both say when; leave one of them out")
        if not (self.header or self.names):
            wrong.append("header = false needs names")
        if wrong:
            raise ValueError("; ".join(wrong))
        return self

    def _wrong_cohort(self) -> list[str]:
        """Say what does not fit a cohort."""
        wrong = []
        kinds = (self.identifier, *self.otherwise)
        if not set(kinds) <= set(get_args(CohortIdentifier)):
            known = ", ".join(get_args(CohortIdentifier))
            wrong.append(
                f"a cohort's identifier is one of {known}, not {self.identifier}"
            )
        if len(set(kinds)) < len(kinds):
            wrong.append("otherwise names an identifier twice")
        if sum(map(bool, (self.cohort, self.cohort_column, self.cohort_file))) > 1:
            wrong.append("set one of cohort, cohort_column and cohort_file")
        told = [one for one in self.cohorts.values() if one]
        if len(set(told)) < len(told):
            wrong.append("cohorts gives one name to several")
        if self.cohorts and not (self.cohort_column or self.cohort_file):
            wrong.append("cohorts needs cohort_column or cohort_file")
        return wrong + self._wrong_attribute()

    def _wrong_attribute(self) -> list[str]:
        """Say what does not fit a cohort that may have to become an attribute."""
        if not self.without_partner:
            return ["membership needs without_partner"] if self.membership else []
        wrong = []
        if not self.membership:
            wrong.append("without_partner needs membership, the attribute's name")
        if "device_id" in (self.identifier, *self.otherwise):
            wrong.append("without_partner cannot use device_id: no profile has it")
        if self.without_partner == "boolean" and (
            self.cohort_column or self.cohort_file
        ):
            wrong.append("several cohorts need without_partner = array")
        return wrong
