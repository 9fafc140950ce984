# make setup | test | coverage | test-all | nightly | lint | bench
PY := .venv/bin/python
SHELL := /bin/bash

.PHONY: setup test coverage test-all nightly lint bench

setup:
	bash scripts/setup.sh dev

lint: setup
	.venv/bin/ruff check .
	.venv/bin/lint-imports
	.venv/bin/shellcheck scripts/*.sh ascend310_infer/*.sh .ci/run
	.venv/bin/clang-format --dry-run --Werror $$(git ls-files '*.cc' '*.h')

# Two workers share the files, each on a core of its own. In alphabetical order the small files come last, and neither
# worker has to wait for the other.
FAST := -n 2 --dist loadfile --no-loadscope-reorder -m "not slow"
test: setup
	$(PY) -m pytest -q $(FAST)

# The share of src/mindseg that the fast tests execute; they take a third longer.
coverage: setup
	$(PY) -m pytest -q $(FAST) --cov --cov-report=term

# In two parts: MindSpore keeps each graph that a process has compiled, gigabytes after all unit tests. Each worker takes
# half of the tests in their order, since those of a file share what its first one makes, and then from the other's end.
test-all: test
	bash scripts/setup.sh slow
	$(PY) -m pytest -q -n 2 --dist worksteal -m "slow and not nightly" tests/unit tests/models
	$(PY) -m pytest -q -n 2 --dist worksteal -m "slow and not nightly" tests/system tests/hostile

# The unit tests draw other random numbers in each of 20 runs; each run prints the seed that repeats it. Then forty
# minutes of mutated input, 20 kills of every program that writes, and the longest of the slow tests.
nightly: setup
	bash scripts/setup.sh slow
	@failed=0; for run in {1..20}; do \
	  MINDSEG_TEST_SEED=random $(PY) -m pytest -q -n 2 --dist loadfile -m "not slow" tests/unit || failed=$$((failed + 1)); \
	  echo "$$failed of $$run runs failed"; \
	done; test $$failed = 0
	MINDSEG_TEST_SEED=random MINDSEG_MUTATION_MINUTES=4 $(PY) -m pytest -q -n 2 --dist load -m "not slow" tests/hostile -k "mutat or flipped or agrees"
	SEGMENT_FUZZ_SECONDS=600 $(PY) -m pytest -q tests/system/test_runner_slow.py -k fuzzing
	MINDSEG_TEST_SEED=random MINDSEG_KILLS=20 $(PY) -m pytest -q -n 2 --dist load tests/hostile/test_kills.py
	MINDSEG_WHOLE_NETWORKS=1 $(PY) -m pytest -q -n 2 --dist loadfile -m slow tests/system/test_switch_matrix.py
	$(PY) -m pytest -q -n 2 --dist loadfile -m nightly tests/unit tests/system --deselect tests/system/test_switch_matrix.py

bench: setup
	for file in benchmarks/*.py; do echo "== $$file"; $(PY) "$$file" || exit 1; done
