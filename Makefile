# make setup | test | test-all | lint | bench
PY := .venv/bin/python
SHELL := /bin/bash

.PHONY: setup test test-all lint bench

setup:
	bash scripts/setup.sh dev

lint: setup
	.venv/bin/ruff check .
	.venv/bin/shellcheck scripts/*.sh ascend310_infer/*.sh .ci/run
	.venv/bin/clang-format --dry-run --Werror $$(git ls-files 'ascend310_infer/*.cc' 'ascend310_infer/*.h')

# The fast tests share the cores, file by file; the slow ones (several ranks, kill points, soak) want them all.
test: setup
	$(PY) -m pytest -q -n 2 --dist loadfile -m "not slow"

test-all: test
	$(PY) -m pytest -q -m slow

bench: setup
	for file in benchmarks/*.py; do echo "== $$file"; $(PY) "$$file" || exit 1; done
