# Two commands do everything on a fresh machine: `make demo` and `make test`. No root, no GPU, network for pip only.
#
#   make demo RECORDINGS=DIR   the demo on recorded spoken digits instead of synthesised speech
#   make demo TARGET=DIR       the demo on a Whisper of your own, or a HuBERT (transformers folder; the HuBERT 6 layers, 384 wide)
#   make test S3PRL_EXT_DATA=DIR   also the tests that need recordings
#   make test-real WHISPER_BASE=DIR   tests on Whisper base, which is fetched (133 MB) unless the folder is there
#   make docs                      the pages and the API reference as a site, in site/
#   make reliability MINUTES=60      kills, damage, hostile files, two runs at once, full disks, before a release (reliability/README.md)
#   make test WORKERS=4   more processes: each takes a core
#   make VENV=DIR PYTHON=python3.12 ...   another environment, another Python (3.11 or later)

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

# Small models on few cores: one thread each is fastest as soon as anything else runs on the machine.
OMP_NUM_THREADS ?= 1
export OMP_NUM_THREADS
# Tests start several hundred commands, each of which would compile the sources again.
export PYTHONDONTWRITEBYTECODE :=
export S3PRL_EXT_DATA

WHISPER_BASE ?= $(or $(S3PRL_EXT_CACHE),$(HOME)/.cache/s3prl_ext)/whisper_base
MINUTES ?= 10
# Processes that share the tests: a file of tests goes to one of them, in alphabetical order, which ends with short files.
WORKERS ?= 2

.PHONY: demo test test-all test-real reliability lint docs venv clean

demo: $(INSTALLED)
	PATH="$(abspath $(BIN)):$$PATH" recipes/demo/run.sh \
		$(if $(RECORDINGS),--recordings "$(RECORDINGS)") $(if $(TARGET),--target "$(TARGET)")

test: lint
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m "not slow and not gpu"

test-all: lint
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile --no-loadscope-reorder

test-real: $(INSTALLED)
	test -e "$(WHISPER_BASE)/config.json" || $(BIN)/s3prl-ext prepare whisper --out "$(WHISPER_BASE)"
	WHISPER_BASE="$(WHISPER_BASE)" $(BIN)/python -m pytest -q tests/real

reliability: $(INSTALLED)
	$(BIN)/python -m reliability --minutes $(MINUTES)

lint: $(INSTALLED)
	$(BIN)/ruff check --extend-exclude "$(VENV)" .
	$(BIN)/ruff format --check --extend-exclude "$(VENV)" .
	$(BIN)/mypy

docs: $(INSTALLED)
	$(BIN)/mkdocs build

venv: $(INSTALLED)

# torch first and by itself: pip then keeps the build (CPU or CUDA) that it chose for this machine. Byte code is written by
# all cores at the end, without tests and ray: pip writes it on one core, half of the time of an installation.
$(INSTALLED): pyproject.toml setup.py constraints.txt s3prl_ext.pth
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "s3prl_ext needs Python 3.11 or later, $(PYTHON) is " + sys.version.split()[0] + ": make PYTHON=python3.11 ...")'
	@$(PYTHON) -c 'import ensurepip, venv' || { echo 'The module venv is missing: on Debian and Ubuntu it is in the package python3-venv.'; exit 1; }
	$(PYTHON) -m venv "$(VENV)"
	$(BIN)/python -m pip install --disable-pip-version-check --no-compile -q -c constraints.txt torch
	$(BIN)/python -m pip install --disable-pip-version-check --no-compile -q -c constraints.txt -e '.[demo,dev]'
	@$(BIN)/python -m pip install --disable-pip-version-check --no-compile -q -c constraints.txt pesq || echo 'pesq is not installed: it is built by a C compiler with the headers of Python (python3-dev). Tests of enhancement are skipped.'
	@$(BIN)/python -c 'import compileall, re, sysconfig; root = sysconfig.get_path("purelib"); compileall.compile_dir(root, quiet=2, workers=0, rx=re.compile(re.escape(root) + "/(.*/)?(tests?|ray)/"))'
	@touch $@

clean:
	rm -rf "$(VENV)" demo build site s3prl_ext.egg-info
