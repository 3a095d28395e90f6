# make repro                       the default profile (params.yaml): .venv, then the whole DAG
# make repro PROFILE=omi-cpu FACES=/path/to/faces
#                                  profiles/omi-cpu.yaml in .runs/omi-cpu, a git worktree at HEAD with the same DVC
#                                  cache; PROFILE=paper wants WEIGHTS=/path/to/weights, too
# make repro STAGES="frm"          as far as these stages, with or without a profile
# make profile PROFILE=omi-cpu     sets .runs/omi-cpu up and runs nothing
# make ablation                    params.yaml with all variants of stage refl, and their benchmark and report, in
#                                  .runs/ablation; or other VARIANTS, such as "full full_seed1 full_seed2
#                                  no_reward no_reward_seed1 no_reward_seed2 more_base", and
#                                  RESTORERS="gfpgan" for some restorers only
# make test                        .venv, then all tests
# make venv                        .venv alone
# make lint                        ruff and mypy
.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.PHONY: help venv repro profile ablation test lint

VENV ?= $(CURDIR)/.venv
# A name on the PATH may be a shim that fails: take the first that runs, has a supported version and can make a venv.
ifndef PYTHON
PYTHON := $(shell for python in python3.12 python3.11 python3 python /usr/bin/python3; do \
	$$python -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' \
	2>/dev/null && echo $$python && break; done)
endif
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check
INSTALL := $(PIP) install --quiet --constraint constraints.txt
export PATH := $(VENV)/bin:$(PATH)
export PYTHONDONTWRITEBYTECODE := 1

PROFILE ?=
FACES ?=
WEIGHTS ?=
# how far `make repro` goes; empty: all
STAGES ?=
# the losses one by one, then the controls
VARIANTS ?= structure reward static full no_reward more_base
# of which restorers; empty: those of params.yaml
RESTORERS ?=

help:
	@sed -n 's/^# \{0,1\}//p' Makefile | head -n 13

venv: $(VENV)/.installed

# Torch first: basicsr's setup looks for it, and builds without isolation see this torch instead of fetching another.
# OpenCV last: basicsr and others bring the one with windows, which needs libraries (libGL) that a server lacks.
$(VENV)/.installed: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 or 3.12 with venv on the PATH; set PYTHON=/path/to/python" >&2; exit 1; }
	$(VENV)/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	$(INSTALL) pip setuptools wheel
	$(INSTALL) torch torchvision numpy cython
	$(INSTALL) --no-build-isolation --editable '.[dev]'
	$(INSTALL) --force-reinstall --no-deps opencv-python-headless
	touch $@

ifneq ($(words $(CURDIR)),1)
$(error this folder's path has a space in it, which make can't handle: clone into another folder)
endif

ifeq ($(PROFILE),)
ifneq ($(FACES)$(WEIGHTS),)
$(error FACES and WEIGHTS need a PROFILE: there are $(basename $(notdir $(wildcard profiles/*.yaml))))
endif
endif

repro: venv
	@python -m pipeline.profiles repro $(STAGES) --profile "$(PROFILE)" --faces "$(FACES)" --weights "$(WEIGHTS)"

profile: venv
	@python -m pipeline.profiles profile --profile "$(PROFILE)" --faces "$(FACES)" --weights "$(WEIGHTS)"

ablation: venv
	@test -z "$(PROFILE)" || { echo "error: make ablation is of params.yaml alone; for a profile, add variants to its refl.variants" >&2; exit 1; }
	@python -m pipeline.profiles ablation "$(VARIANTS)" --restorers "$(RESTORERS)"

# Two processes; a file's tests stay together, so that the whole-DAG test runs its DAG once. Files keep tests/conftest.py's
# order (by itself pytest-xdist begins with those of most tests).
# One thread each: two processes of two threads on two cores wait for each other at every barrier.
test: venv
	OMP_NUM_THREADS=1 pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

lint: venv
	ruff check .
	ruff format --check .
	mypy pipeline stages
