"""Refuse notebooks with outputs: python notebooks/check_stripped.py [--strip] NOTEBOOK..."""

import json
import sys
from pathlib import Path


def strip(notebook: Path, rewrite: bool) -> bool:
    """Whether the notebook has outputs; with ``rewrite`` they are removed."""
    content = json.loads(notebook.read_text(encoding="utf-8"))
    has_outputs = False
    for cell in content["cells"]:
        if cell["cell_type"] == "code":
            has_outputs |= bool(cell["outputs"]) or cell["execution_count"] is not None
            cell["outputs"], cell["execution_count"] = [], None
    if has_outputs and rewrite:
        notebook.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return has_outputs


def main() -> None:
    """Check, or strip, the notebooks named."""
    rewrite = "--strip" in sys.argv
    notebooks = [Path(argument) for argument in sys.argv[1:] if argument != "--strip"]
    unclean = [notebook for notebook in notebooks if strip(notebook, rewrite)]
    if unclean and not rewrite:
        sys.exit(f"outputs in {', '.join(map(str, unclean))}: run python {sys.argv[0]} --strip NOTEBOOK...")


if __name__ == "__main__":
    main()
