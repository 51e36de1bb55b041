"""Runs the cells of walkthrough.ipynb without Jupyter and keeps what they print and draw.

python course/run_notebook.py        (`jupyter nbconvert --execute --inplace` does the same)
"""

import base64
import contextlib
import io
import json
import os
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402 (the backend is set before)

NOTEBOOK = Path(__file__).resolve().parent / "walkthrough.ipynb"


def run(notebook: dict) -> dict:
    """The notebook with the outputs of its code cells, which are run in order in one namespace."""
    names, folder = {}, Path.cwd()
    os.chdir(NOTEBOOK.parent)
    for number, cell in enumerate((c for c in notebook["cells"] if c["cell_type"] == "code"), 1):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile("".join(cell["source"]), "walkthrough.ipynb", "exec"), names)
        text = printed.getvalue().splitlines(keepends=True)
        outputs = [{"output_type": "stream", "name": "stdout", "text": text}] if text else []
        for figure in map(pyplot.figure, pyplot.get_fignums()):
            figure.savefig(picture := io.BytesIO(), format="png", dpi=150)
            data = {"image/png": base64.b64encode(picture.getvalue()).decode()}
            outputs.append({"output_type": "display_data", "data": data, "metadata": {}})
        pyplot.close("all")
        cell["execution_count"], cell["outputs"] = number, outputs
    os.chdir(folder)
    return notebook


if __name__ == "__main__":
    filled = run(json.loads(NOTEBOOK.read_text(encoding="utf-8")))
    NOTEBOOK.write_text(json.dumps(filled, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
