# Set-up, the main job, and the checks. All of it happens in .venv; stamp files there say what is
# done, so that only the first call takes minutes. Where .venv is of another version than PYTHON,
# PYTHON gets an environment of its own: `make test PYTHON=python3.13` works in .venv-3.13.

PYTHON ?= python3
EXPERIMENT ?= demo
PORT ?= 5000
# More words for what is started, as in make demo ARGS="-P max_steps=200", make faults ARGS="-k kill".
ARGS ?=
# One more than the cores of a small machine: many tests wait for a process or a server.
JOBS ?= 3

VENV := .venv
ifneq ($(origin PYTHON),file)
    VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    VERSION_THERE := $(shell sed -n 's/^version = \([0-9]*\.[0-9]*\).*/\1/p' .venv/pyvenv.cfg 2> /dev/null)
    ifneq ($(VERSION),$(or $(VERSION_THERE),$(VERSION)))
        VENV := .venv-$(VERSION)
    endif
endif

BIN := $(CURDIR)/$(VENV)/bin
STORE := sqlite:///$(CURDIR)/mlflow.db
INSTALL := $(VENV)/bin/python -m pip install -qq --constraint constraints.txt
INSTALLED := $(VENV)/.installed
INSTALLED_DEV := $(VENV)/.installed-dev
# Other trackers, for comparison: what they need would disturb the pins of $(VENV).
INSTALLED_BENCH := .venv-bench/.installed
COMPARISONS := */logging_cost.py|*/rows_lost.py|*/checkpoints.py|*/loading.py

.DEFAULT_GOAL := help
.PHONY: help demo ui server test faults tables reference lint bench
.DELETE_ON_ERROR:

# What another job left in the environment would send this one elsewhere.
unexport MLFLOW_RUN_ID MLFLOW_EXPERIMENT_ID MLFLOW_EXPERIMENT_NAME MLFLOW_RUN_NAME
unexport MLFLOW_TRACKING_URI MLFLOW_REGISTRY_URI PYTHONPATH
unexport MLFLOW_TRACK_BACKEND MLFLOW_TRACK_RESUME MLFLOW_TRACK_DIR
# Every process of the tests would compile the package again.
unexport PYTHONDONTWRITEBYTECODE
export MLFLOW_DISABLE_TELEMETRY := true
export GIT_PYTHON_REFRESH := quiet

help: ## what there is to do
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 14

demo: export MLFLOW_TRACKING_URI := $(STORE)
demo: export MLFLOW_EXPERIMENT_NAME := $(EXPERIMENT)
demo: export MLFLOW_TRACK_BACKEND := mlflow
demo: $(INSTALLED) mlflow.db ## train the language model into a local MLflow store (all set-up included)
	@# mlflow starts the first `python` on the PATH.
	@PATH="$(BIN):$$PATH" $(VENV)/bin/mlflow run . --env-manager=local --experiment-name "$(EXPERIMENT)" $(ARGS)
	@echo
	@echo "The run is a folder in runs/$(EXPERIMENT), and a run of the MLflow store mlflow.db. Look at it:"
	@echo "  ls runs/$(EXPERIMENT)/*                 metrics.csv, checkpoints, curves.png, sample.txt"
	@echo "  make ui                       the MLflow UI on http://127.0.0.1:$(PORT)"

ui: export MLFLOW_SERVER_ENABLE_JOB_EXECUTION := false
ui: $(INSTALLED) mlflow.db ## the MLflow UI on the store of the demo; PORT=5000
	@echo "http://127.0.0.1:$(PORT)/#/experiments?workflowType=machine_learning   (Ctrl-C ends it)"
	@$(VENV)/bin/mlflow ui --backend-store-uri "$(STORE)" --host 127.0.0.1 --port $(PORT) --workers 1

server: $(INSTALLED_DEV) ## an MLflow server on PostgreSQL, data in .server/; PORT=5000
	@$(VENV)/bin/python -m tests.servers --port $(PORT)

test: $(INSTALLED_DEV) ## all tests
	$(VENV)/bin/python -m pytest -n $(JOBS) --dist loadgroup

faults: $(INSTALLED_DEV) ## only the tests that kill, cut and take away, whole; FAULT_SEED=1 tries others
	$(VENV)/bin/python -m pytest -n $(JOBS) --dist loadgroup -m "faults or slow" $(ARGS)

tables: $(INSTALLED_DEV) ## only the wide tables, whole
	$(VENV)/bin/python -m pytest -n $(JOBS) --dist loadgroup -m tables $(ARGS)

reference: $(INSTALLED) ## write docs/reference.md from the docstrings
	@$(VENV)/bin/python docs/make_reference.py

lint: $(INSTALLED_DEV) ## style, format and types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyright

bench: export PYTHONPATH := $(CURDIR)
bench: $(INSTALLED_DEV) $(INSTALLED_BENCH) ## the benchmarks, one after the other
	@set -e; for file in benchmarks/[a-z]*.py; do \
		case "$$file" in $(COMPARISONS)) python=.venv-bench/bin/python ;; *) python=$(VENV)/bin/python ;; esac; \
		echo "== $$file"; "$$python" "$$file"; \
	done

# Two processes that open a fresh SQLite store together break it, so one makes it first.
mlflow.db: | $(INSTALLED)
	@echo "Making the MLflow store mlflow.db"
	@MLFLOW_TRACKING_URI="$(STORE)" $(VENV)/bin/mlflow experiments search > $(VENV)/store.log 2>&1 \
		|| { cat $(VENV)/store.log; exit 1; }

# pip comes last into a new environment: one that has it is whole.
$(VENV)/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "$(PYTHON) is too old: 3.10 or newer is needed, as in make PYTHON=python3.11")'
	@$(PYTHON) -m venv $(VENV)

$(INSTALLED): pyproject.toml constraints.txt | $(VENV)/bin/pip
	@echo "Installing into $(VENV) (a few minutes the first time)"
	@$(INSTALL) --editable ".[all]"
	@touch $@

$(INSTALLED_DEV): $(INSTALLED)
	@echo "Installing what the checks need"
	@$(INSTALL) --editable ".[all,dev,server]"
	@touch $@

$(INSTALLED_BENCH): benchmarks/peers.txt benchmarks/aim.txt | $(VENV)/bin/pip
	@echo "Installing other trackers into .venv-bench (a few minutes the first time)"
	@$(PYTHON) -m venv .venv-bench
	@.venv-bench/bin/python -m pip install -qq --requirement benchmarks/peers.txt
	@$(PYTHON) -m venv .venv-bench/aim
	@.venv-bench/aim/bin/python -m pip install -qq --requirement benchmarks/aim.txt
	@touch $@
