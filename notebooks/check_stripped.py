"""Refuse notebooks that carry outputs: python notebooks/check_stripped.py [--strip] NOTEBOOK..."""

import json
import sys
from pathlib import Path


def strip(notebook: Path, rewrite: bool) -> bool:
    """Whether the notebook carried outputs; with ``rewrite`` they are taken out."""
    content = json.loads(notebook.read_text(encoding="utf-8"))
    carried = False
    for cell in content["cells"]:
        if cell["cell_type"] == "code":
            carried |= bool(cell["outputs"]) or cell["execution_count"] is not None
            cell["outputs"], cell["execution_count"] = [], None
    if carried and rewrite:
        notebook.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return carried


def main() -> None:
    """Check, or strip, the notebooks named."""
    rewrite = "--strip" in sys.argv
    notebooks = [Path(argument) for argument in sys.argv[1:] if argument != "--strip"]
    carrying = [notebook for notebook in notebooks if strip(notebook, rewrite)]
    if carrying and not rewrite:
        sys.exit(f"outputs in {', '.join(map(str, carrying))}: run python {sys.argv[0]} --strip NOTEBOOK...")


if __name__ == "__main__":
    main()
