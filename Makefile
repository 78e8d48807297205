# make repro | plain-ldm | test | test-all | lint create .venv once and work in it; make clean-scratch | clean remove
PYTHON ?= python3
VENV   := .venv
STAMP  := $(VENV)/.installed
WORKERS ?= 2
PY     := $(VENV)/bin/python
PIP    := $(PY) -m pip --disable-pip-version-check

# DVC stages call `python`, so .venv comes first on the PATH; `python -m stages.x` must find the project in the working
# directory and nowhere else (queued DVC experiments run in a temporary copy), so no PYTHONPATH.
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export DVC_NO_ANALYTICS := 1
unexport PYTHONPATH
unexport PYTHONHOME

.PHONY: repro plain-ldm test test-all lint clean clean-scratch venv scm
.DELETE_ON_ERROR:

repro: $(STAMP) scm
	$(PY) -m dvc repro

plain-ldm: $(STAMP) scm
	$(PY) -m dvc repro plain_ldm/dvc.yaml

# Two processes of one OpenMP thread each: tests are small tensors and waiting for others. A file stays in one process.
test: $(STAMP)
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(PY) -m pytest -q -n $(WORKERS) --dist loadfile -m "not slow and not gpu"

test-all: $(STAMP)
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-2} $(PY) -m pytest -q

lint: $(STAMP)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

venv: $(STAMP)

# An unpacked archive has no Git repository; DVC then has to be told so.
scm: $(STAMP)
	@git rev-parse --git-dir > /dev/null 2>&1 || $(PY) -m dvc config --local core.no_scm true

# torch first and alone, so that the build your pip configuration offers (a CPU wheel, say) is the one that stays.
# The project itself is not installed: see the note on the PATH.
$(STAMP): pyproject.toml
	@$(PYTHON) -c "import sys; v = sys.version_info; \
	sys.exit(None if v >= (3, 11) else 'expected Python >= 3.11, got %d.%d; run make PYTHON=python3.12' % v[:2])"
	@echo "installing into $(VENV) (about two minutes)"
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PIP) install -qq torch==2.13.0
	@$(PY) -c "import tomllib; project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
	print(*project['dependencies'], *project['optional-dependencies']['dev'], sep='\n')" > $(VENV)/requirements.txt
	$(PIP) install -qq -r $(VENV)/requirements.txt
	@touch $@

# Work in progress of runs that broke off: a stage clears its own when it ends well, never that of other settings.
clean-scratch:
	rm -rf .vw2

# Environment, work in progress and caches; never data, metrics or weights.
clean:
	rm -rf $(VENV) .vw2 .pytest_cache .ruff_cache build *.egg-info
	find vw2 stages tests -name __pycache__ -type d -prune -exec rm -rf {} +
