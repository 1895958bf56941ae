"""Write the files that are generated from the code; with ``--check`` list those that are stale instead."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from reference_pages import cli, configuration, entry_points, errors, http_api, names, peft_methods, python_api

from mlflow_finetune_plugin.config.reference import json_schema, methods_table, mlproject

ROOT = Path(__file__).resolve().parent.parent
_PAGES = {
    "configuration": configuration,
    "entry-points": entry_points,
    "peft-methods": peft_methods,
    "cli": cli,
    "python": python_api,
    "http": http_api,
    "names": names,
    "errors": errors,
}
_TABLE = re.compile(r"(<!-- methods -->\n).*?(\n<!-- /methods -->)", re.DOTALL)


def generated() -> dict[Path, str]:
    """Return the text of every generated file, by path."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    schema = json.dumps(json_schema(), indent=1, ensure_ascii=False) + "\n"
    files = {ROOT / "docs" / "reference" / f"{name}.md": module.render() for name, module in _PAGES.items()}
    files[ROOT / "docs" / "finetune.schema.json"] = schema
    files[ROOT / "README.md"] = _TABLE.sub(lambda match: match[1] + methods_table() + match[2], readme)
    for recipe in ROOT.glob("recipes/*/finetune.yaml"):
        files[recipe.parent / "MLproject"] = mlproject(recipe.parent.name)
    return files


def main() -> int:
    """Write the stale files and return 0; with ``--check`` write nothing, and return 1 if there is any."""
    texts = generated()
    stale = [path for path, text in texts.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    is_check = "--check" in sys.argv
    for path in stale:
        if is_check:
            sys.stderr.write(f"stale: {path.relative_to(ROOT)}; fix: make docs\n")
        else:
            path.parent.mkdir(exist_ok=True)
            path.write_text(texts[path], encoding="utf-8")
            sys.stdout.write(f"wrote {path.relative_to(ROOT)}\n")
    return 1 if stale and is_check else 0


if __name__ == "__main__":
    sys.exit(main())
