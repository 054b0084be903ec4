# Everything that a person or CI runs; each target sets up what it needs.
BUILDER := $(or $(PYTHON),python3)
VENV := .venv
BIN := $(VENV)/bin

INSTALL := PYTHON='$(PYTHON)' DESTDIR='$(DESTDIR)' PREFIX='$(PREFIX)' PURGE='$(PURGE)' systemd/install.sh

.PHONY: demo test test-vm check bench clean install upgrade uninstall fence unfence install-user uninstall-user

$(VENV)/current: pyproject.toml
	@$(BUILDER) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("traind needs Python 3.11 or newer; say which with PYTHON=")'
	@echo "setting up $(VENV) (torch included, this takes a minute) ..."
	@$(BUILDER) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[jobs,dev]'
	@touch $@

demo: $(VENV)/current
	@$(BIN)/python jobs/demo.py

test: $(VENV)/current
	$(BIN)/python -m pytest -m "not slow" -q -n auto
	$(BIN)/python -m pytest -m slow -q -n auto --dist loadfile

# In qemu, with a kernel of its own: by hand, not in CI. The Debian that it makes stays in build/vm.
test-vm: $(VENV)/current
	$(BIN)/python -m pytest tests/vm -q

check: $(VENV)/current
	$(BIN)/ruff format --check daemon jobs tests
	$(BIN)/ruff check daemon jobs tests
	$(BIN)/mypy

bench: $(VENV)/current
	$(BIN)/python -m pytest tests/benchmarks -q -s

# For the machine (sudo) or for yourself; the script says which of PYTHON, DESTDIR, PREFIX, PURGE count.
install upgrade uninstall fence unfence install-user uninstall-user:
	@$(INSTALL) $@

clean:
	rm -rf $(VENV) build daemon/*.egg-info .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
