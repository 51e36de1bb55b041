"""Runs the cells of walkthrough.ipynb without Jupyter and keeps what they print and draw.

    python course/run_notebook.py

With Jupyter, `jupyter nbconvert --execute --inplace course/walkthrough.ipynb` does the same.
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
    try:
        cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
        for number, cell in enumerate(cells, 1):
            cell["execution_count"], cell["outputs"] = number, outputs_of("".join(cell["source"]), names)
    finally:
        os.chdir(folder)
    return notebook


def outputs_of(code: str, names: dict) -> list[dict]:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "walkthrough.ipynb", "exec"), names)
    outputs = []
    if text := printed.getvalue():
        outputs.append({"output_type": "stream", "name": "stdout", "text": text.splitlines(keepends=True)})
    for figure in map(pyplot.figure, pyplot.get_fignums()):
        picture = io.BytesIO()
        figure.savefig(picture, format="png", dpi=72)
        data = {"image/png": base64.b64encode(picture.getvalue()).decode()}
        outputs.append({"output_type": "display_data", "data": data, "metadata": {}})
    pyplot.close("all")
    return outputs


if __name__ == "__main__":
    filled = run(json.loads(NOTEBOOK.read_text(encoding="utf-8")))
    NOTEBOOK.write_text(json.dumps(filled, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
