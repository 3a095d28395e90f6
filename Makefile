# make repro                       the default profile (params.yaml): .venv, then the whole DAG
# make repro PROFILE=omi-cpu FACES=/path/to/faces
#                                  profiles/omi-cpu.yaml in .runs/omi-cpu, a git worktree at HEAD with the same DVC
#                                  cache; PROFILE=paper wants WEIGHTS=/path/to/weights, too
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
RUN := .runs/$(PROFILE)
PARAMS ?= profiles/$(PROFILE).yaml
FACES ?=
WEIGHTS ?=
# the losses one by one, then the controls
VARIANTS ?= structure reward static full no_reward more_base
# of which restorers; empty: those of params.yaml
RESTORERS ?=

help:
	@sed -n 's/^# \{0,1\}//p' Makefile | head -n 11

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
repro: venv
	python -m pipeline.cli check
	dvc repro
else
repro: profile
	cd $(RUN) && python -m pipeline.cli check
	@cd $(RUN) && if [ -f .faces.new ]; then rm -f .faces; dvc repro --force --single-item prepare && mv .faces.new .faces; fi
# the folder is no dependency that DVC hashes: another run's faces must not come out of the cache of runs
	@cd $(RUN) && if [ -e faces ]; then dvc repro --no-run-cache --single-item prepare; fi
	cd $(RUN) && dvc repro
endif

# The run's own lock, metrics and plots, and votes that were exported in it, stay when its code moves to the new HEAD, so
# that only what changed runs again and no vote is lost.
KEPT := dvc.lock metrics plots
# exit status 3 where params.yaml takes its faces from elsewhere than the link that FACES makes, 2 where it is broken
define OWN_FACES
from pipeline.faces.params import FacesParams
from pipeline.params import load
from pipeline.runtime import one_line_errors

def check():
    faces = load("faces", FacesParams)
    raise SystemExit(0 if (faces.source, faces.folder) == ("folder", "faces") else 3)

one_line_errors(check)()
endef
export OWN_FACES
# of a folder and what its links lead to: size, time and path of every file
LISTED := { find -L . -type f -printf '%s %T@ %p\n' || true; } | LC_ALL=C sort
profile: venv
	@test -f $(PARAMS) || { echo "error: $(PARAMS) is missing; there are: $$(cd profiles && echo *.yaml)" >&2; exit 1; }
	@git diff --quiet HEAD -- pipeline stages dvc.yaml annotations || echo "note: $(RUN) runs the committed code and votes (HEAD), not your uncommitted edits"
	@git worktree prune
	@if [ -e $(RUN) ] && [ "$$(git -C $(RUN) rev-parse --show-toplevel 2>&1)" != "$$(cd $(RUN) && pwd -P)" ]; then \
	  echo "error: $(RUN) is no git worktree of this checkout (was it moved?); delete $(RUN), its results are in the DVC cache" >&2; exit 1; \
	fi
	@if [ -f $(RUN)/.head ] && own=$$(git -C $(RUN) rev-parse HEAD) && [ $$own != "$$(cat $(RUN)/.head)" ] && [ -z "$$(git branch --all --contains $$own --format '%(refname)' | grep '^refs/')" ]; then \
	  echo "error: $(RUN) has commits that no branch holds and that would be lost; keep them: git branch NAME $$own" >&2; exit 1; \
	fi
	@if [ -d $(RUN) ]; then \
	  edited=$$(git -C $(RUN) diff --name-only --diff-filter=d HEAD -- . $(addprefix ':(exclude)',$(KEPT) annotations params.yaml) | tr '\n' ' '); \
	  if [ -f $(RUN)/.params ] && [ -f $(RUN)/params.yaml ] && ! cmp -s $(RUN)/.params $(RUN)/params.yaml; then edited="params.yaml $$edited"; fi; \
	  if [ -n "$$edited" ]; then \
	    echo "error: edits in $(RUN) would be lost: $$edited- put params into $(PARAMS) and code into this checkout, and delete these files there" >&2; exit 1; \
	  fi; \
	  cd $(RUN); base=$$(cat .head 2>/dev/null || true); \
	  git cat-file -e "$$base^{commit}" 2>/dev/null || base=HEAD; \
	  votes=$$(git diff --name-only --diff-filter=AM "$$base" -- annotations); \
	  if [ ! -e .kept.tar ]; then \
	    tar -cf .kept.tar.new $$(ls -d $(KEPT) 2>/dev/null) $$votes --files-from /dev/null; \
	    mv .kept.tar.new .kept.tar; \
	  fi; \
	  git reset --quiet; \
	  git checkout --quiet --force --detach $$(git -C $(CURDIR) rev-parse HEAD); \
	  rm -rf $(KEPT); tar -xf .kept.tar; rm .kept.tar; \
	else \
	  git worktree add --quiet --detach $(RUN) HEAD; \
	  cd $(RUN); rm -rf $(KEPT); \
	fi
	@git -C $(RUN) rev-parse HEAD > $(RUN)/.head
	@cd $(RUN) && dvc config --local cache.dir "$$(cd $(CURDIR) && dvc cache dir)"
	@cd $(RUN) && for round in annotations/rounds/*.dvc; do if [ -e "$$round" ]; then dvc checkout --quiet "$$round"; fi; done
	@cp $(PARAMS) $(RUN)/params.yaml && cp $(PARAMS) $(RUN)/.params
	@if [ -n "$(FACES)" ]; then \
	  test -d "$(FACES)" || { echo "error: FACES=$(FACES) is no folder" >&2; exit 1; }; \
	  (cd $(RUN) && python -c "$$OWN_FACES") || \
	    { if [ $$? = 3 ]; then echo "error: FACES is given, but $(PARAMS) takes its faces from elsewhere: it needs faces.source: folder and faces.folder: faces" >&2; fi; exit 1; }; \
	  ln -sfn "$$(cd "$(FACES)" && pwd)" $(RUN)/faces; \
	fi
	@if [ -e $(RUN)/faces ]; then \
	  (cd -P $(RUN)/faces && pwd -P && $(LISTED)) > $(RUN)/.faces.new; \
	  if cmp -s $(RUN)/.faces.new $(RUN)/.faces; then rm $(RUN)/.faces.new; fi; \
	fi
	@if [ -n "$(WEIGHTS)" ]; then \
	  test -d "$(WEIGHTS)" || { echo "error: WEIGHTS=$(WEIGHTS) is no folder" >&2; exit 1; }; \
	  ln -sfn "$$(cd "$(WEIGHTS)" && pwd)" $(RUN)/weights; \
	  (cd -P $(RUN)/weights && pwd -P && $(LISTED)) > $(RUN)/.weights.new; \
	  if [ -f $(RUN)/.weights ] && ! cmp -s $(RUN)/.weights.new $(RUN)/.weights; then \
	    echo "note: the files of WEIGHTS are others than those taken in, and DVC does not watch them: docs/weights.md says what to do"; \
	  fi; \
	  if [ -f $(RUN)/.weights ]; then rm $(RUN)/.weights.new; else mv $(RUN)/.weights.new $(RUN)/.weights; fi; \
	fi

# params.yaml with other variants: what the default run has already made comes from the DVC cache. Nothing here dirties
# the checkout, and there is no second copy of the params to keep.
empty :=
space := $(empty) $(empty)
comma := ,
listed = [$(subst $(space),$(comma)$(space),$(strip $(1)))]
ablation: venv
	@test -z "$(PROFILE)$(FACES)$(WEIGHTS)" || { echo "error: make ablation is of params.yaml alone; for a profile, add variants to its refl.variants" >&2; exit 1; }
	@mkdir -p .runs
	@cp params.yaml .runs/ablation.yaml
	@set_list() { \
	  sed -E "s/^(  $$1: )\[[^]]*\]/\1$$2/" .runs/ablation.yaml > .runs/listed; mv .runs/listed .runs/ablation.yaml; \
	  grep -qF "  $$1: $$2" .runs/ablation.yaml || { echo "error: params.yaml has no line \`  $$1: [...]\` in refl" >&2; exit 1; }; \
	}; \
	set_list variants "$(call listed,$(VARIANTS))"; \
	if [ -n "$(strip $(RESTORERS))" ]; then set_list restorers "$(call listed,$(RESTORERS))"; fi
	$(MAKE) --old-file=venv repro PROFILE=ablation PARAMS=.runs/ablation.yaml

# Two processes; a file's tests stay together, so that the whole-DAG test runs its DAG once. Files keep tests/conftest.py's
# order (by itself pytest-xdist begins with those of most tests).
# One thread each: two processes of two threads on two cores wait for each other at every barrier.
test: venv
	OMP_NUM_THREADS=1 pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

lint: venv
	ruff check .
	ruff format --check .
	mypy pipeline stages
