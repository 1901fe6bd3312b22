"""The commented settings file that ``init`` writes."""

from __future__ import annotations

import json
from typing import Any

from currents_ingest.config import json_schema

_URLS = {
    "source": "s3://acme-currents/braze",
    "feeds": "s3://acme-amperity/currents",
}

_HEAD = """\
#:schema ./{schema}
# Every value may also come from the environment, as CURRENTS_FEEDS__URL.
# AWS access follows the usual chain: profiles, SSO, roles, AWS_ENDPOINT_URL.
"""


def toml(schema: str) -> str:
    """Return the file: the two URLs to set, every default as a comment.

    Args:
        schema: Where the JSON Schema lies, for editors that understand ``#:schema``.
    """
    definition = json_schema()
    parts = [_HEAD.format(schema=schema)]
    for name, section in definition["properties"].items():
        many = section.get("additionalProperties")  # a table of tables
        body = definition["$defs"][(many or section)["$ref"].rsplit("/", 1)[-1]]
        title = f"# [{name}.vip]" if many else f"[{name}]"
        lines = [title, f"# {body['description']}"]
        for key, value in body["properties"].items():
            lines.append(f"# {value['description']}")
            lines.append(_line(name, key, value))
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def _line(section: str, key: str, value: dict[str, Any]) -> str:
    if "default" in value:
        default = value["default"]
        return f"# {key} = {json.dumps(default)}" if default is not None else f"# {key}"
    if section not in _URLS:
        return f"# {key} = {json.dumps('s3://acme-amperity/exports/vip/')}"
    return f'{key} = "{_URLS[section]}"'
