# Every target makes .venv and installs what it needs; nothing else has to be there but Python >= 3.11.
PYTHON ?= python3
PIP = .venv/bin/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

.PHONY: help demo test test-slow ladder vectors gpu-check real bench bench-trainer tutorials figures docs lint clean

help:           ## this list
	@grep -E '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/: .*## /\t/' | expand -t 12

demo: .venv/run ## train SPARC and the global loss alone on mosaics; writes runs/demo/report.html (under 5 minutes; downloads 45 MB)
	.venv/bin/sparc-ref demo --resume

# A test per core at a time, each with one thread of BLAS and torch.
test test-slow: export OMP_NUM_THREADS = 1
test test-slow: export OPENBLAS_NUM_THREADS = 1

test: .venv/test ## every test that takes seconds (seven to twelve minutes on 2 cores; downloads 475 MB, more where torch is the CUDA build)
	.venv/bin/python -m pytest -n auto --dist worksteal -m "not slow"

test-slow: .venv/test ## the tests that take minutes: ten kills, real photos, every implementation of the zoo
	.venv/bin/python -m pytest -n auto --dist worksteal -m slow

ladder: .venv/test ## reference against trainer, from single operations to whole runs; writes runs/ladder/report.html (minutes)
	.venv/bin/python -m parity ladder

vectors: .venv/test ## compute the frozen reference outputs again and compare
	.venv/bin/python -m parity vectors --check

gpu-check:      ## everything that needs a GPU, in one command under ten minutes; report under docs/gpu/ (see docs/gpu/README.md)
	$(or $(wildcard .venv/bin/python),$(PYTHON)) -m parity.ladder.gpu_check

real: .venv/run ## train on real photos and picture scenes from the sample data folder (about 15 minutes)
	.venv/bin/python bench/real.py

bench: .venv/test ## one training step against torch, ratios from one run; and the time of the import
	.venv/bin/python bench/import_time.py
	.venv/bin/python bench/step.py

bench-trainer: .venv/test ## the torch trainer's costs side by side: memory of the global loss, SPARC against it alone, compiled, in chunks
	.venv/bin/python bench/trainer.py

tutorials: .venv/tutorials ## execute every tutorial from clean and write its notebook, with the time of each
	.venv/bin/python tutorials/build.py

figures: .venv/tutorials ## the same, and every figure of the tutorials as SVG and PDF under runs/figures
	.venv/bin/python tutorials/build.py --figures runs/figures

docs: .venv/docs ## the site: every page, tutorial and docstring, to read without a network; writes runs/site/index.html
	rm -rf runs/site
	.venv/bin/sphinx-build -q -W --keep-going -c docs -d runs/.doctrees . runs/site
	@echo Open runs/site/index.html

lint: .venv/dev ## ruff, mypy, and the arrows between the rooms
	.venv/bin/ruff check .
	.venv/bin/mypy
	.venv/bin/lint-imports

clean:          ## remove the environment and everything that runs wrote
	rm -rf .venv runs .pytest_cache .hypothesis .ruff_cache .mypy_cache .import_linter_cache

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python >= 3.11 is needed: make $(MAKECMDGOALS) PYTHON=python3.x"; exit 1; }
	$(PYTHON) -m venv .venv || { rm -rf .venv; echo "Python's venv is needed; Debian and Ubuntu: apt install python3-venv"; exit 1; }

.venv/run .venv/test .venv/dev .venv/tutorials .venv/docs: .venv/bin/python pyproject.toml constraints.txt
	$(PIP) --editable '.[$(@F)]'
	@touch $@
