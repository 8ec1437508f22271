"""The policy document as a person writes it: one pydantic model for each part, frozen, nothing unknown accepted.

A name here has one grammar wherever it appears, because names end up in etcd keys, table names and certificates.
Nothing is coerced: a number where a word is due is an error, with the place where it stands (law L8). What the parts
mean together is `policy.analysis`; what the machine decides by is `policy.compile`.
"""

from __future__ import annotations

import re
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, WithJsonSchema

from policy.model import ColumnType, KeyType, Operation  # noqa: TC001 - pydantic reads the annotations
from policy.sharding import MAX_SHARDS

REGION_CODE: Final = re.compile(r"[A-Z]{2}(-[A-Z0-9]{1,8})?|[0-9]{3}", re.ASCII)
ANY_PURPOSE: Final = "*"

RESERVED_COLUMNS: Final = frozenset(
    {"region_code", "key", "shard", "seq", "version", "update_time", "deleted", "request_id", "epoch", "traceparent"}
    # PostgreSQL's system columns cannot be column names either.
    | {"tableoid", "xmin", "cmin", "xmax", "cmax", "ctid", "oid"}
    # Words of the filter language.
    | {"and", "or", "not", "true", "false", "null"}
)


def _word(kind: str, pattern: str, hint: str) -> tuple[AfterValidator, WithJsonSchema]:
    """A string that is one word of the given grammar, in validation and in the JSON Schema."""
    compiled = re.compile(pattern, re.ASCII)

    def check(value: str) -> str:
        if not compiled.fullmatch(value):
            raise ValueError(f"{value[:64]!r} is not {kind}: {hint}")
        return value

    schema = {"type": "string", "pattern": f"^(?:{pattern})$", "description": f"{kind[0].upper()}{kind[1:]}: {hint}."}
    return AfterValidator(check), WithJsonSchema(schema)


def _column_name(value: str) -> str:
    if value in RESERVED_COLUMNS:
        raise ValueError(f"{value!r} is reserved; choose another column name")
    return value


_lower = r"[a-z][a-z0-9]*(?:-[a-z0-9]+)*"
_snake = r"[a-z][a-z0-9_]{0,40}"
_upper = r"[A-Z][A-Z0-9]{0,15}(?:-[A-Z0-9]{1,15})?"

IdcName = Annotated[str, Field(max_length=31), *_word("an IDC's name", _lower, "lower case letters, digits, hyphens")]
Jurisdiction = Annotated[str, *_word("a jurisdiction", _upper, "upper case letters and digits, such as EU or US-CA")]
RuleName = Annotated[str, Field(max_length=63), *_word("a rule's name", _lower, "lower case letters, digits, hyphens")]
GroupName = Annotated[
    str, *_word("a group's name", r"[A-Za-z][A-Za-z0-9_-]{0,62}", "letters, digits, hyphens, underscores")
]
RegionName = Annotated[
    str,
    *_word(
        "a group or a RegionCode",
        r"[A-Za-z][A-Za-z0-9_-]{0,62}|[0-9]{3}",
        "a group's name, or a code such as DE, CA-QC or '419' (in quotes)",
    ),
]
DatasetName = Annotated[str, *_word("a dataset's name", _snake, "lower case letters, digits, underscores, up to 41")]
ColumnName = Annotated[
    str,
    *_word("a column's name", _snake, "lower case letters, digits, underscores, up to 41"),
    AfterValidator(_column_name),
]
ClassName = Annotated[
    str, *_word("a class", r"[a-z][a-z0-9_-]{0,62}", "lower case letters, digits, hyphens, underscores")
]
PurposeName = Annotated[
    str,
    *_word(
        "a purpose",
        r"\*|[a-z][a-z0-9_-]{0,62}",
        "lower case letters, digits, hyphens, underscores; or '*' for any, stated or not",
    ),
]


class Part(BaseModel):
    """Any part of a document."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, populate_by_name=True)


class IdcEntry(Part):
    """A data centre."""

    jurisdiction: Jurisdiction = Field(description="The law that the IDC stands under.")


class ResidencyRule(Part):
    """Which jurisdictions may hold some RegionCodes, and how their shards spread over IDCs."""

    name: RuleName
    regions: tuple[RegionName, ...] = Field(min_length=1, description="RegionCodes and groups of them.")
    jurisdictions: tuple[Jurisdiction, ...] = Field(min_length=1, description="The law: where the rows may be stored.")
    idcs: dict[IdcName, Annotated[int, Field(ge=0, le=1_000_000)]] = Field(
        min_length=1, description="Operations: weight of each IDC; the shards are shared out in this proportion."
    )
    shards: int = Field(
        default=16, ge=1, le=MAX_SHARDS, description="Shards of each RegionCode; fixed once it is assigned."
    )
    transit: Literal["allow", "forbid"] = Field(
        default="allow",
        description="Whether rows may pass through a gateway of another jurisdiction; if not, callers are sent on.",
    )


class AccessRule(Part):
    """Who may read or write some RegionCodes from another jurisdiction, and which columns are withheld."""

    name: RuleName
    regions: tuple[RegionName, ...] = Field(min_length=1, description="RegionCodes and groups of them.")
    askers: tuple[Jurisdiction, ...] = Field(
        alias="from", min_length=1, description="Jurisdictions of the IDCs where calls may enter."
    )
    operations: tuple[Operation, ...] = Field(min_length=1)
    purposes: tuple[PurposeName, ...] = Field(min_length=1, description="Purposes that a call may state; '*' for any.")
    datasets: tuple[DatasetName, ...] | None = Field(default=None, min_length=1, description="All when left out.")
    withhold: tuple[ClassName, ...] = Field(default=(), description="Classes of columns that do not travel.")


class ColumnEntry(Part):
    """A typed column."""

    type: ColumnType
    data_class: ClassName | None = Field(
        default=None, alias="class", description="A free word that access rules withhold by."
    )


class DatasetEntry(Part):
    """A kind of row."""

    key: KeyType
    columns: dict[ColumnName, ColumnEntry] = Field(min_length=1, max_length=500)


class Expectation(Part):
    """A test of the policy by itself: of one access decision, or of where rows may never be stored."""

    region: RegionName = Field(description="A RegionCode, or a group: then every member is tested.")
    asker: Jurisdiction | None = Field(default=None, alias="from")
    operation: Operation | None = None
    purpose: PurposeName | None = Field(default=None, description="Left out: the call states none.")
    dataset: DatasetName | None = Field(default=None, description="Left out: every dataset is tested.")
    decision: Literal["allow", "deny"] | None = None
    withheld: tuple[ColumnName, ...] | None = Field(
        default=None, description="Exactly the columns that do not travel; left out: not tested."
    )
    rule: RuleName | None = Field(default=None, description="Name of the rule that must decide; left out: not tested.")
    never_stored_in: tuple[Jurisdiction, ...] | None = Field(default=None, min_length=1)


class PolicyDocument(Part):
    """One policy: where rows of which place may be, and who may see them."""

    version: Literal[1] = Field(description="Version of this format.")
    idcs: dict[IdcName, IdcEntry] = Field(min_length=1)
    groups: dict[GroupName, tuple[RegionName, ...]] = Field(
        default={}, description="Names for sets of RegionCodes; a group may hold groups."
    )
    residency: tuple[ResidencyRule, ...] = Field(min_length=1, description="Each RegionCode under exactly one rule.")
    access: tuple[AccessRule, ...] = Field(
        default=(),
        description="Across jurisdictions all is denied unless a rule allows it; the first that fits decides.",
    )
    datasets: dict[DatasetName, DatasetEntry] = Field(min_length=1)
    expect: tuple[Expectation, ...] = Field(default=(), description="A policy that fails one of these is refused.")

    def to_json(self) -> str:
        """The document as compact JSON, defaults spelled out: readers parse it in a fraction of the time of YAML."""
        return self.model_dump_json(by_alias=True, exclude_none=True)

    @classmethod
    def from_json(cls, text: str) -> PolicyDocument:
        """Reads what `to_json` wrote; raises `ValueError` when it is not that."""
        return cls.model_validate_json(text)
