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
        body = definition["$defs"][section["$ref"].rsplit("/", 1)[-1]]
        lines = [f"[{name}]", f"# {body['description']}"]
        for key, value in body["properties"].items():
            lines.append(f"# {value['description']}")
            lines.append(_line(name, key, value))
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def _line(section: str, key: str, value: dict[str, Any]) -> str:
    if "default" in value:
        return f"# {key} = {json.dumps(value['default'])}"
    return f'{key} = "{_URLS[section]}"'
