PYTHON ?= python3
TEST_PROCESSES ?= 2
BIN := .venv/bin
# uv, where it is at hand, installs in one minute what takes pip five. Modules are compiled as pip does: where Python may
# not write (PYTHONDONTWRITEBYTECODE, a read-only environment) every start of a process would compile torch anew.
PIP := $(if $(shell command -v uv),uv pip install --compile-bytecode --python $(BIN)/python,$(BIN)/python -m pip install --disable-pip-version-check)
PIP_INSTALL := $(PIP) --quiet --constraint constraints.txt --editable

# Two pip processes must not write to one environment, so nothing here runs in parallel.
.NOTPARALLEL:
.PHONY: help quickstart test lint extras

help:
	@echo "make quickstart   set up .venv, run the smallest grid (gin/quickstart.gin) and print its table"
	@echo "make test         set up .venv and run the tests, in two processes (TEST_PROCESSES=1: in one)"
	@echo "make lint         set up .venv and check style, format and types"
	@echo "make extras       add what the tests of optional parts need (peft, tensorboard)"
	@echo "make ... PYTHON=python3.12 chooses the interpreter of a new .venv (3.11 or newer)"

quickstart: .venv/.installed
	@$(BIN)/python -m bench.grid --gin gin/quickstart.gin

test: .venv/.installed-test
	@$(BIN)/python -m pytest --numprocesses=$(TEST_PROCESSES) --dist=loadfile --no-loadscope-reorder

lint: .venv/.installed-lint
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy

# A stamp is written only after its step succeeded, so an interrupted installation is repeated.
.venv/.created:
	@command -v "$(PYTHON)" >/dev/null || \
		{ echo "No $(PYTHON) found: install Python 3.11 or newer, or name one, as in make $(or $(MAKECMDGOALS),test) PYTHON=/path/to/python3.12" >&2; exit 1; }
	@"$(PYTHON)" -c "import sys; sys.exit(sys.version_info < (3, 11))" || \
		{ echo "$(PYTHON) is $$("$(PYTHON)" --version 2>&1), but 3.11 or newer is needed: name one, as in make $(or $(MAKECMDGOALS),test) PYTHON=/path/to/python3.12" >&2; exit 1; }
	@echo "Creating .venv with $$("$(PYTHON)" --version)"
	@"$(PYTHON)" -m venv .venv
	@touch $@

# What the tests of optional parts need: without it they are skipped.
extras: .venv/.installed-extras

.venv/.installed: EXTRA :=
.venv/.installed-extras: EXTRA := [test,peft,tensorboard]
.venv/.installed-test: EXTRA := [test]
.venv/.installed-lint: EXTRA := [lint]
.venv/.installed .venv/.installed-extras .venv/.installed-test .venv/.installed-lint: .venv/.created pyproject.toml constraints.txt
	@echo "Installing adaptation-bench$(EXTRA) into .venv (the first time: several minutes, about 6 GB with CUDA)"
	@$(PIP_INSTALL) ".$(EXTRA)"
	@touch $@
