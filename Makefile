# Everything a fresh machine needs is Python (3.11 to 3.14) and make.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
RUN = $(BIN)/python -m
# Where it is set, each of the many starts compiles all of our modules again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test check wheel-test campaign campaign-audiences campaign-cohorts campaign-dask fuzz fuzz-exports bench bench-audiences bench-feeds bench-polls bench-validate screenshots schemas lock clean

demo: $(VENV)/ready  ## the main job on made-up data
	$(BIN)/currents-ingest demo

test: $(VENV)/ready-dev  ## the tests, on two processes
	$(RUN) pytest -n 2 --dist loadgroup

check: $(VENV)/ready-dev  ## lint, format, types, import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Tests need the package's wheel alone: they run in a folder without its source.
wheel-test: $(VENV)/ready-dev
	rm -rf build/wheel && mkdir -p build/wheel/away
	$(RUN) pip wheel --quiet --no-deps --no-build-isolation -w build/wheel .
	$(PYTHON) -m venv build/wheel/venv
	build/wheel/venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-dev.txt
	build/wheel/venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps build/wheel/*.whl
	cp -R tests fixtures pyproject.toml build/wheel/away
	rm -rf build/wheel/away/tests/checkout
	cd build/wheel/away && ../venv/bin/python -P -m pytest -n 2 --dist loadgroup -p no:cacheprovider

campaign: $(VENV)/ready-dev  ## kills by the hundred; about half an hour
	$(RUN) tests.campaign --kills 200 --seed 1
	$(RUN) tests.campaign --kills 200 --seed 2 --empty-disk
	$(RUN) tests.campaign --kills 60 --seed 3 --s3 --at-once 3

fuzz: $(VENV)/ready-dev  ## damaged files by the hundred thousand; a quarter of an hour
	$(RUN) tests.fuzz --count 100000 --seed 1

fuzz-exports: $(VENV)/ready-dev  ## damaged exports by the ten thousand; six minutes
	$(RUN) tests.fuzz_exports --count 20000 --seed 1

campaign-dask: $(VENV)/ready-dev  ## coordinators, workers, schedulers killed; ten minutes
	$(RUN) tests.dask_campaign --kills 60 --seed 1

bench: $(VENV)/ready-dev build/peers/ready  ## against other ways; half an hour
	$(RUN) tools.bench build/peers/bin/python

build/peers/ready: tools/peers/requirements.txt
	$(PYTHON) -m venv build/peers
	build/peers/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r $<
	touch $@

bench-validate: $(VENV)/ready-dev  ## validate against fastavro over s3fs; ten minutes
	$(RUN) tools.bench_validate

bench-feeds: $(VENV)/ready-dev  ## all unified feeds beside the raw ones; ten minutes
	$(RUN) tools.bench_feeds

bench-polls: $(VENV)/ready-dev  ## polls beside a million files; twenty minutes
	$(RUN) tools.bench_polls

bench-audiences: $(VENV)/ready-dev  ## the way back: speed, and a difference of 10 million
	$(BIN)/python tools/bench_audiences.py

campaign-audiences: $(VENV)/ready-dev  ## a million people, a hundred kills; half an hour
	$(RUN) tests.audience_campaign --people 1000000 --kills 100 --seed 1
	$(RUN) tests.audience_campaign --people 100000 --kills 50 --seed 2 --kind events
	$(RUN) tests.audience_campaign --people 100000 --kills 50 --seed 3 --kind inc

campaign-cohorts: $(VENV)/ready-dev  ## two million ids in cohorts, sixty kills
	$(RUN) tests.cohort_campaign --people 2000000 --kills 60 --seed 1
screenshots: $(VENV)/ready-dev  ## pictures of the report for docs/; needs Chromium
	$(RUN) tools.screenshots

# FACTS is a folder of facts about Braze's samples; see the script.
schemas: $(VENV)/ready-dev
	$(BIN)/python tools/derive_schemas.py $(FACTS)

lock:  ## needs uv
	uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --group build -o requirements.txt
	uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --group build --group test --group dev -o requirements-dev.txt
	uv pip compile tools/peers/requirements.in --universal --python-version 3.11 --generate-hashes --no-header --no-annotate -o tools/peers/requirements.txt
	echo distributed | uv pip compile - --universal --python-version 3.12 --generate-hashes --no-header --no-annotate -c requirements-dev.txt -o deploy/dask/requirements.txt
	echo awslambdaric | uv pip compile - --universal --python-version 3.12 --generate-hashes --no-header --no-annotate -c requirements.txt -o deploy/lambda/requirements.txt

clean:
	rm -rf $(VENV) build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache

$(VENV)/ready: requirements.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(RUN) pip install --quiet --disable-pip-version-check --no-deps -r requirements.txt
	$(RUN) pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

$(VENV)/ready-dev: requirements-dev.txt $(VENV)/ready
	$(RUN) pip install --quiet --disable-pip-version-check --no-deps -r requirements-dev.txt
	touch $@
