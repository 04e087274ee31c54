"""Make `harness/fa_harness/case/design.csv`: rows in which all allowed pairs and triples meet.

Needs `covertable`. The same version gives the same rows.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from covertable.main import Controller

from fa_harness.case.design import BLOCKS, TRIPLES, rules_of

FILE = Path(__file__).parent.parent / "harness/fa_harness/case/design.csv"


def controller(block: str) -> Controller:
    """Return the model of a block: its dimensions, and which values must and cannot meet."""
    return Controller(
        {name: list(values) for name, values in BLOCKS[block].items()},
        strength=2,
        sub_models=[{"fields": list(names), "strength": 3} for names in TRIPLES[block]],
        constraints=[
            {
                "operator": "fn",
                "requires": list(names),
                "evaluate": lambda row, names=names, holds=holds: holds(*(row[n] for n in names)),
            }
            for names, holds in rules_of(block)
        ],
    )


def tables() -> Iterator[str]:
    """Yield the table of each block."""
    for block, dimensions in BLOCKS.items():
        rows = list(controller(block).make_async())
        text = io.StringIO()
        writer = csv.DictWriter(text, list(dimensions), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        print(f"{block}: {len(rows)} rows")
        yield f"# {block}\n{text.getvalue()}"


if __name__ == "__main__":
    FILE.write_text("\n".join(tables()), encoding="utf-8")
