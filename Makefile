# make demo    install into .venv, then digits -> distilled MobileNet -> int8 -> measured report
# make test    install with the test tools, then run the tests
# make lint    ruff and, for the modules that import no torch, mypy
# make clean   remove what these made, .venv included; never models/, reports/ or the store
#
# PYTHON=python3.12 chooses the interpreter, VENV=DIR another place for the environment.

PYTHON ?= python3
VENV ?= .venv

PIP = "$(VENV)/bin/python" -m pip --quiet --disable-pip-version-check install --constraint constraints.txt
# types are checked where torch's own, loose ones do not get in the way
TORCH_FREE = $(shell grep -rLE '^(import|from) torch' compress --include='*.py')

.PHONY: demo install test lint format clean
.DEFAULT_GOAL := demo
MAKEFLAGS += --no-print-directory

demo: $(VENV)/.installed
	@"$(VENV)/bin/compress" run --student mobilenet --kd fitnet --quantize int8

install: $(VENV)/.installed

test: $(VENV)/.installed-test
	@OMP_NUM_THREADS=1 "$(VENV)/bin/python" -m pytest --quiet --numprocesses 2 --dist loadfile --no-loadscope-reorder

lint: $(VENV)/.installed-test
	@"$(VENV)/bin/ruff" check --quiet .
	@"$(VENV)/bin/ruff" format --quiet --check .
	@"$(VENV)/bin/mypy" --no-error-summary --follow-imports=silent $(TORCH_FREE)

format: $(VENV)/.installed-test
	@"$(VENV)/bin/ruff" check --quiet --fix .
	@"$(VENV)/bin/ruff" format --quiet .

# The stamps make a second call instant. The environment is made in the same recipe as the installation, so that one
# left half-made by an interruption is completed by the next call.
$(VENV)/.installed: pyproject.toml constraints.txt
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "error: $(PYTHON) is missing or older than the Python 3.11 that this needs" >&2; \
		echo "  hint: name another one, for example: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@echo "installing into $(VENV): once, and a few gigabytes because of torch" >&2
	@"$(VENV)/bin/python" -m pip --version >/dev/null 2>&1 || "$(PYTHON)" -m venv "$(VENV)"
	@$(PIP) --editable .
	@touch "$@"

$(VENV)/.installed-test: $(VENV)/.installed
	@$(PIP) --editable '.[test]'
	@touch "$@"

# an environment without our stamp is somebody else's, whatever VENV says
clean:
	@if [ -e "$(VENV)/.installed" ] || [ "$(VENV)" = .venv ]; then rm -rf "$(VENV)"; fi
	@rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
	@find compress tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
