.PHONY: run test quick paper bench gpu clean

PYTHON ?= python3
VENV := .venv

run: $(VENV)/ready
	$(VENV)/bin/python train.py

test: $(VENV)/ready
	$(VENV)/bin/ruff check .
	$(VENV)/bin/python -m pytest -n 2 --dist loadfile

quick: $(VENV)/ready
	$(VENV)/bin/python -m pytest -n 2 --dist loadfile -m "not slow"

paper: $(VENV)/ready
	$(VENV)/bin/python experiments/paper.py

bench: $(VENV)/ready
	$(VENV)/bin/python experiments/bench.py

gpu: $(VENV)/ready
	$(VENV)/bin/python experiments/gpu.py

$(VENV)/ready: requirements.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install -q -r requirements.txt
	$(VENV)/bin/pip install -q -e ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
