"""Writes what is generated from the code; ``--check`` says what is stale instead."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from mlflow_finetune_plugin.config.reference import json_schema, methods_table, mlproject, reference_markdown

ROOT = Path(__file__).resolve().parent.parent
_TABLE = re.compile(r"(<!-- methods -->\n).*?(\n<!-- /methods -->)", re.DOTALL)


def generated() -> dict[Path, str]:
    """Path -> contents of every generated file."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    files = {
        ROOT / "docs" / "reference.md": reference_markdown(),
        ROOT / "docs" / "finetune.schema.json": json.dumps(json_schema(), indent=1, ensure_ascii=False) + "\n",
        ROOT / "README.md": _TABLE.sub(lambda found: found[1] + methods_table() + found[2], readme),
    }
    for recipe in ROOT.glob("recipes/*/finetune.yaml"):
        files[recipe.parent / "MLproject"] = mlproject(recipe.parent.name)
    return files


def main() -> int:
    """Writes, or with --check names the stale files and returns 1."""
    stale = [
        path for path, text in generated().items() if not path.exists() or path.read_text(encoding="utf-8") != text
    ]
    for path in stale:
        if "--check" in sys.argv:
            sys.stderr.write(f"stale: {path.relative_to(ROOT)}; fix: make docs\n")
        else:
            path.write_text(generated()[path], encoding="utf-8")
            sys.stdout.write(f"wrote {path.relative_to(ROOT)}\n")
    return 1 if stale and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
