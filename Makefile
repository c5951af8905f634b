# The few commands people type. `make demo` and `make test` do all the set-up they need.
#   make demo TORCH="torch==2.13.0 --index-url ..."   chooses the torch build; PYTHON=python3.12 the interpreter
#   make soak MINUTES=10, make fuzz CASES=20000   nodes under load for so long, so many cases of fuzzing
#   make test EXTRAS=gpu   brings Triton to torch's CPU build, so that the kernels of the GPU are tested as well

PYTHON ?= $(shell test -x .venv/bin/python && echo .venv/bin/python || echo python3)
TORCH ?= torch>=2.13
EXTRAS ?=
RUNS ?= runs
MINUTES ?= 30
CASES ?= 100000
BIN := .venv/bin
export AMENT_PREFIX_PATH := $(CURDIR)/.venv

.PHONY: setup demo test lint soak fuzz bench bench-fusion peers devkit train clean

setup:
	@$(PYTHON) tools/set_up.py --torch "$(TORCH)" --extras "$(EXTRAS)"

demo: setup
	@$(BIN)/kestrel demo --out out/demo

lint: setup
	@$(BIN)/pre-commit run --all-files --show-diff-on-failure

test: lint
	@$(BIN)/pytest

soak: setup
	@KESTREL_SOAK_MINUTES=$(MINUTES) $(BIN)/pytest -s tests/soak

fuzz: setup
	@KESTREL_FUZZ_CASES=$(CASES) $(BIN)/pytest --timeout=0 tests/fuzz

bench-fusion: setup
	@$(BIN)/kestrel bench fusion

bench: setup
	@trap 'exit 130' INT; names=$$($(BIN)/kestrel bench --list) || exit 1; failed=; \
	for name in $$names; do $(BIN)/kestrel bench $$name || failed="$$failed $$name"; done; \
	test -z "$$failed" || { echo "bench: failed:$$failed" >&2; exit 1; }

peers:
	@$(PYTHON) kernels/peers/set_up_spconv.py --torch "$(TORCH)"

devkit:
	@$(PYTHON) tools/set_up_nuscenes_devkit.py

train: setup
	@for split in train validation; do $(BIN)/kestrel train prepare --split $$split || exit 1; done
	@for network in seg fusion video augment; do \
	ls $(RUNS)/$$network*/checkpoints/last.ckpt >/dev/null 2>&1 && resume=--resume || resume=; \
	$(BIN)/kestrel train $$network --out $(RUNS) $$resume || exit 1; done

clean:
	@rm -rf .venv out build
