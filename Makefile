# Two commands matter: `make demo` and `make test`. Both work on a fresh machine that has Python 3.11-3.13 and an index.
#   PYTHON=python3.12   the interpreter that makes .venv
#   PIP_ARGS=...        handed to pip, for example an index with smaller (CPU-only) torch builds
#   WORKERS=2           test processes
#   WHEELS=folder       wheels of mmcv and xtcocotools; where there are some, `make test` tests the bridges too

PYTHON ?= python3
PIP_ARGS ?=
WORKERS ?= logical
WHEELS ?= $(firstword $(wildcard wheels ../shared/wheels))

VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready
BRIDGES := $(VENV)/.bridges
TYPES := build/types

# One thread per test process: the processes share the cores. Nothing in the suite may reach for the network.
QUIET := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false \
	HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 HF_DATASETS_OFFLINE=1

.PHONY: help venv demo test test-bridges lint types bench clean

help:
	@echo "make demo    install, then ask the embedded model about a picture"
	@echo "make test    install, lint, type check, run the whole suite (offline, CPU)"
	@echo "make test-bridges  install MMDetection and MMPose from WHEELS, and test the bridges to them"
	@echo "make lint    ruff"
	@echo "make types   mypy"
	@echo "make bench   measure speed (no test does)"
	@echo "make clean   remove builds and caches, keep .venv"

venv: $(READY)

$(READY): setup.py pyproject.toml constraints.txt
	@echo "installing into $(VENV) (a few minutes the first time)"
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@# setuptools warns about every editable installation, pip passes it on even when told to be quiet
	PYTHONWARNINGS=ignore $(PY) -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e ".[dev]"
	@touch $@

# Their own requirements ask for packages that no longer build, and that nothing here uses: they are listed instead.
$(BRIDGES): $(READY) requirements-bridges.txt
	PYTHONWARNINGS=ignore $(PY) -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt --no-deps \
		-r requirements-bridges.txt $(WHEELS)/*.whl
	@touch $@

test-bridges: $(BRIDGES)
	@$(QUIET) $(PY) -m pytest -q -n $(WORKERS) --maxprocesses 4 -p no:cacheprovider tests/bridges tests/decoders

demo: $(READY)
	$(VENV)/bin/visionllm ask "detect all cars" examples/street.jpg --out outputs/street_detected.jpg

lint: $(READY)
	$(PY) -m ruff check .

# A type checker does not read package_dir: it is given a folder of links in which the packages lie where they import.
types: $(READY)
	@rm -rf $(TYPES)/visionllm && mkdir -p $(TYPES)/visionllm
	@ln -s "$(CURDIR)"/visionllm/* "$(CURDIR)"/decoders "$(CURDIR)"/routing "$(CURDIR)"/datasets $(TYPES)/visionllm/
	cd $(TYPES) && ../../$(PY) -m mypy --config-file ../../pyproject.toml --cache-dir ../../.mypy_cache -p visionllm

# pytest speaks last: its closing line is the last line of the output. Files run in their order: by default those with few
# tests would come last, and the longest ones are among them.
# Where wheels lie, the bridges are part of it.
test: lint types $(if $(wildcard $(WHEELS)/mmcv-*.whl),$(BRIDGES))
	@$(QUIET) $(PY) -m pytest -q -n $(WORKERS) --maxprocesses 4 --dist loadfile --no-loadscope-reorder -p no:cacheprovider

bench: $(READY)
	@for script in tools/bench/*.py; do echo "== $$script"; $(PY) "$$script" || exit 1; done

clean:
	rm -rf build dist ./*.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path "./$(VENV)/*" -prune -exec rm -rf {} +
