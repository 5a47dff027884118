# `make demo` and `make test` are the two commands; `make help` lists the others.
PYTHON ?= python3
WORKERS ?= 2
MIN_PYTHON := $(shell sed -n 's/^min_python *= *//p' settings.ini)
UV := $(shell command -v uv 2>/dev/null)
BIN := .venv/bin
STAMP := .venv/installed
RUN := outputs/zero_shot/carp_600k_sprot50_pairs

.PHONY: help demo scans test check format style mutants bench gpu lab docs sync readme clean
help:  ## this list
	@awk -F ' *## *' '/^[a-z]+:.*##/ {sub(/:.*/, "", $$1); printf "make %-7s %s\n", $$1, $$2}' Makefile

# pyproject.toml is left out on purpose: nbdev_export rewrites it
$(STAMP): settings.ini setup.py constraints.txt
	@found=$$($(PYTHON) -c 'import sys; print("Python %d.%d" % sys.version_info[:2])' 2>/dev/null || echo "no Python"); \
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < tuple(map(int, "$(MIN_PYTHON)".split("."))))' 2>/dev/null || \
	{ echo "carp_nb needs Python $(MIN_PYTHON) or newer and '$(PYTHON)' gives $$found: name another, as in make demo PYTHON=python$(MIN_PYTHON)"; exit 1; }
ifneq ($(UV),)
	@test -x $(BIN)/python || uv venv --quiet --python "$(PYTHON)" .venv
	uv pip install --python $(BIN)/python $(foreach place,$(PIP_FIND_LINKS),--find-links "$(place)") --constraint constraints.txt --editable '.[dev]'
else
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[dev]'
endif
# a kernel warns at every start that others on this machine could read what it computes
	@mkdir -p .venv/etc/ipython && echo 'c.IPKernelApp.log_level = "ERROR"' > .venv/etc/ipython/ipython_kernel_config.py
	@touch $@

demo: $(STAMP)  ## environment, then a map of mutations before and after adapting a model to a family
	$(BIN)/python scripts/demo.py

scans: $(STAMP)  ## score the shipped mutational scans: a table and a figure
	@mkdir -p $(RUN)
	@touch $(RUN)/.started
	$(BIN)/papermill nbs/zero_shot.ipynb $(RUN)/notebook.ipynb
	@written=$$(find outputs/zero_shot -newer $(RUN)/.started \( -name results.parquet -o -name '*.svg' -o -name notebook.ipynb \) | sort); rm $(RUN)/.started; \
	for wanted in results.parquet .svg; do \
	  case "$$written" in *$$wanted*) ;; *) echo "the run wrote no $$wanted under outputs/zero_shot: see $(RUN)/notebook.ipynb"; exit 1;; esac; \
	done; \
	echo "Done. The table, the figure and the executed notebook:"; echo "$$written" | sed 's/^/  /'

check: $(STAMP)  ## layout, lint, types and how the code reads, compared with what was accepted
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/python scripts/style.py --check

format: $(STAMP)  ## write the layout of notebooks and scripts
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

style: $(STAMP)  ## how the code reads, in numbers; ARGS=--accept keeps the present ones
	$(BIN)/python scripts/style.py $(ARGS)

# a process per core and a thread per process: threads of several processes stand in each other's way
test: export OMP_NUM_THREADS = 1
test: $(STAMP) check  ## environment, layout and types, then every notebook and every test, WORKERS=2 at a time
	@flags=$$(sed -n 's/^tst_flags *= *//p' settings.ini | tr ' ' '|'); \
	grep -cE "^ *\"#\| *($$flags)\b" nbs/*.ipynb nbs/library/*.ipynb | awk -F: -v flags="$$flags" '$$2 {print "skipped: " $$2 " cell(s) flagged " flags " in " $$1}'
	$(BIN)/nbdev_test --n_workers $(WORKERS)
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist worksteal

mutants: $(STAMP)  ## wrong edits one by one, for each of which a test must fail; NAMES="'planned methods'"
	$(BIN)/python scripts/mutants.py $(NAMES)

# extras, installed at the first run
.venv/bench .venv/docs: $(STAMP)
ifneq ($(UV),)
	uv pip install --python $(BIN)/python $(foreach place,$(PIP_FIND_LINKS),--find-links "$(place)") --constraint constraints.txt --editable '.[$(@F)]'
else
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[$(@F)]'
endif
	@touch $@

bench: .venv/bench  ## speed beside other software: all lines, or LINES="linearity train-carp_600k"; ARGS="--clock wall"
	$(BIN)/python -m benchmarks $(LINES) $(ARGS)

# no environment is made: such a machine often has no internet, but a Python with PyTorch
GPU_PYTHON ?= $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))
MINUTES ?= 9
DEVICE ?= cuda
gpu:  ## what a GPU is for, in MINUTES=9: tests, speed, Figure 1f, pretraining; DEVICE=cpu rehearses
	$(GPU_PYTHON) -m benchmarks.gpu --minutes $(MINUTES) --device $(DEVICE) $(ARGS)

lab: $(STAMP)  ## JupyterLab, opened at index.ipynb; ARGS="--no-browser --port 8890"
	$(BIN)/jupyter lab --LabApp.default_url=/lab/tree/nbs/index.ipynb --LabApp.app_settings_dir=profiles/lab $(ARGS)

docs: .venv/docs  ## the notebooks, how-to pages and reference as a site in _docs/
	$(BIN)/python scripts/docs.py

sync: $(STAMP)  ## carry edited notebooks into the package, strip what does not belong into git
	$(BIN)/nbdev_export
	$(BIN)/nbdev_clean

readme: $(STAMP)  ## README.md from nbs/index.ipynb, as it stands with its outputs
	$(BIN)/python scripts/readme.py

clean:  ## remove the environment and build leftovers; outputs/ stays
	rm -rf .venv build dist *.egg-info .pytest_cache .hypothesis
	find carp_nb nbs scripts tests data -name __pycache__ -prune -exec rm -rf {} +
