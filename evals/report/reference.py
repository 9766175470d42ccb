"""``report.json`` documented: ``python -m merge_models.evals.report.reference docs`` writes it.

``report.schema.json`` is the JSON Schema, ``report.md`` the same for people. A test compares both with the
types, so neither can be out of date.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from pathlib import Path
from typing import Any

from merge_models.evals.diagnostics.registry import DIAGNOSTICS
from merge_models.evals.schema import SCHEMA_VERSION, Evaluation

INTRODUCTION = f"""# report.json

What `merge-models eval MERGE --report report.json` writes, `Evaluation.to_json()` returns and
`Evaluation.from_json()` reads back. [report.schema.json](report.schema.json) is its JSON Schema.

- The schema's version is {SCHEMA_VERSION}. It grows when a field changes its meaning or goes; new
  fields do not change it.
- A number that is not defined (a ratio to zero, a statistic of a layer with NaN) is `null`, never NaN.
- A part that was not measured is `null`, and `notes` says why.
- Ratios compare the merge with the parents' mean, weighted as the merge weights them. Lengths and times are
  in the units that the fields name: nats, radians, seconds.
- In every list of one value a parent, parents stand in the order of `models`.

```python
from merge_models.evals.report import to_html
from merge_models.evals.schema import Evaluation

report = Evaluation.from_json(open("report.json", encoding="utf-8").read())
assert report.verdict.status != "collapsed"
open("report.html", "w", encoding="utf-8").write(to_html(report))
```

`report.html` is one file without network access: charts, data and libraries are inside. `report.md` is a
section for a model card.
"""


DIVIDER = "\\|"
"""What stands for itself in a cell of a table."""


def schema() -> dict[str, Any]:
    """Returns the JSON Schema of ``report.json``."""
    return Evaluation.model_json_schema()


def reference() -> str:
    """Returns the schema in Markdown: a section a record, with what its docstring says of each field."""
    whole = schema()
    records = [("Evaluation", whole), *whole["$defs"].items()]
    sections = [_record(name, record) for name, record in records]
    return "\n".join([INTRODUCTION, _diagnostics(), *sections])


def _diagnostics() -> str:
    """A row a diagnostic: what it is and how it is read."""
    rows = [
        f"| {one.label} | `{one.key}` | {one.depth} | {one.unit} | {', '.join(sorted(one.needs))} |"
        f" {one.definition.replace('|', DIVIDER)} |"
        for one in DIAGNOSTICS
    ]
    names = ("diagnostic", "field", "depth", "unit", "needs", "definition")
    head = [f"| {' | '.join(names)} |", f"|{' --- |' * len(names)}"]
    told = (
        "Every number of the records below that is measured belongs to one of these (`evals/diagnostics`)."
        " Depths run from cheap to dear: weights are read from files, activations take one pass of the"
        " text, tasks answers."
    )
    return "\n\n".join(["## Diagnostics", told, "\n".join([*head, *rows])]) + "\n"


def _record(name: str, record: dict[str, Any]) -> str:
    summary, attributes = _sections(record.get("description", ""))
    properties = record.get("properties", {})
    described = {key: told["description"] for key, told in properties.items() if "description" in told}
    attributes += [f"`{key}`: {text.replace('|', DIVIDER)}" for key, text in described.items()]
    rows = [
        f"| `{field}` | {_type(told)} | {'yes' if field in record.get('required', ()) else 'no'} |"
        for field, told in properties.items()
    ]
    table = "\n".join(["| field | type | required |", "| --- | --- | --- |", *rows])
    listed = "\n".join(f"- {text}" for text in attributes)
    return "\n\n".join(part for part in (f"## {name}", summary, listed, table) if part) + "\n"


def _sections(docstring: str) -> tuple[str, list[str]]:
    """A docstring's summary, and its attributes with their texts on one line each."""
    text = inspect.cleandoc(docstring).replace("``", "`").replace("|", "\\|")
    summary, _, rest = text.partition("Attributes:")
    attributes: list[str] = []
    for raw in rest.splitlines():
        begins = re.match(r" {4}(\w[\w, ]*): (.*)", raw)
        if begins:
            names = ", ".join(f"`{name}`" for name in begins[1].split(", "))
            attributes.append(f"{names}: {begins[2]}")
        elif raw.strip() and attributes:
            attributes[-1] += f" {raw.strip()}"
    return " ".join(summary.split()), attributes


def _type(told: dict[str, Any]) -> str:
    """A field's type in a few words."""
    if "$ref" in told:
        name = told["$ref"].split("/")[-1]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in told:
        return " or ".join(_type(one) for one in told["anyOf"])
    if "enum" in told:
        return ", ".join(f"`{value}`" for value in told["enum"])
    kind = told.get("type", "any")
    if kind == "array":
        if "prefixItems" in told:
            return "[" + ", ".join(_type(one) for one in told["prefixItems"]) + "]"
        return f"list of {_type(told.get('items', {}))}"
    if kind == "object" and isinstance(told.get("additionalProperties"), dict):
        return f"map to {_type(told['additionalProperties'])}"
    return kind


def write(folder: Path) -> None:
    """Writes both files."""
    (folder / "report.schema.json").write_text(json.dumps(schema(), indent=1) + "\n", encoding="utf-8")
    (folder / "report.md").write_text(reference(), encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
