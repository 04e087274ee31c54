"""The published schemas of JSON reports, by which tests check the reports that they make."""

import json
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator, FormatChecker

FOLDER = Path(__file__).parents[1] / "docs" / "schemas"


def checked(document: dict[str, Any]) -> dict[str, Any]:
    """Return a report that has the keys that its schema has, and no other, as JSON holds it."""
    document = json.loads(json.dumps(document, allow_nan=False))
    name, _, version = document["schema"].removeprefix("fa-harness.").partition("/")
    schema = json.loads((FOLDER / f"{name}-{version}.json").read_text())
    Draft202012Validator.check_schema(schema)
    validator = Draft202012Validator(_closed(schema), format_checker=FormatChecker())
    errors = [
        f"{error.json_path}: {error.message[:300]}" for error in validator.iter_errors(document)
    ]
    assert not errors, errors
    return document


def _closed(schema: Any) -> Any:
    """Return a schema under which a key that it does not name is an error."""
    if isinstance(schema, list):
        return [_closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: _closed(value) for key, value in schema.items()}
    return {"additionalProperties": False, **closed} if "required" in schema else closed
