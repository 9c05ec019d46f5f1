# Two commands on a machine with python3 and make: `make demo` and `make test`.
BIN := .venv/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt
PACKAGES := -e '.[train,cifar,tensorboard,notebooks,dev]'
# uv installs in a third of pip's time; where it cannot be had or finds no index, pip does it.
UV := $(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode -c constraints.txt

.PHONY: env demo test test-all lint bench clean

env: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	@echo "installing into .venv (about a minute)"
	python3 -m venv .venv
	($(PIP) uv && $(UV) $(PACKAGES)) || $(PIP) $(PACKAGES)
	touch $@

# The paper's figures 1 and 5 on embedded data: the same deep ResNet with and without shortcuts, both fit to their data.
DEMO := $(BIN)/python train.py --dataset digits --arch resnet32 --epochs 60 --lr 0.02 --resume
COMPARE := $(BIN)/jaxscape plot demo/resnet32/surface.zarr demo/resnet32_noshort/surface.zarr --loss-max 100
demo: env
	$(DEMO) --out demo/resnet32
	$(DEMO) --noshort --out demo/resnet32_noshort
	$(BIN)/jaxscape surface demo/resnet32 --points 31
	$(BIN)/jaxscape surface demo/resnet32_noshort --points 31
	$(COMPARE) --kind contourf --out demo/contours.png
	$(COMPARE) --kind surface3d --out demo/surfaces.png
	$(BIN)/jaxscape report demo/resnet32 demo/resnet32_noshort --out demo/report.html
	@echo "side by side: demo/contours.png demo/surfaces.png demo/report.html"

# The pictures of the README.
docs/surfaces.png: demo
	cp demo/surfaces.png $@

docs/contours.png: demo
	cp demo/contours.png $@

# The paper's figure 7: both ends of the Hessian's spectrum over the planes of a deeper pair.
DEEP := $(BIN)/python train.py --dataset digits --arch resnet56 --epochs 30 --lr 0.05 --resume
HESSIAN := --points 11 --subset 256 --weights-only
docs/eigenvalues.png: env
	$(DEEP) --out runs/figure7/resnet56
	$(DEEP) --noshort --out runs/figure7/resnet56_noshort
	$(BIN)/jaxscape hessian runs/figure7/resnet56 $(HESSIAN)
	$(BIN)/jaxscape hessian runs/figure7/resnet56_noshort $(HESSIAN)
	$(BIN)/jaxscape plot runs/figure7/resnet56/hessian.zarr runs/figure7/resnet56_noshort/hessian.zarr --out $@

# Does a flat minimizer generalize, and what do shortcuts do? Two hours on 2 cores; what is finished is kept.
.PHONY: studies
studies: env
	$(BIN)/python -m studies.flatness
	$(BIN)/python -m studies.shortcuts

# The paper's figures 9 and 8 on digits: paths of 8 runs in their principal planes; one of them in other planes, too.
PATHS := runs/figure9
CONTRAST := $(PATHS)/vgg9_digits_epochs=30
docs/trajectories.png: env
	$(BIN)/python train.py --preset digits-fig9 --out $(PATHS) --resume
	$(BIN)/jaxscape trajectory $(PATHS)/*digits_[!o]* $(PATHS)/*adam* --steps --out docs/trajectories.png
	$(BIN)/jaxscape trajectory $(CONTRAST) --steps --directions random
	$(BIN)/jaxscape trajectory $(CONTRAST) --steps --directions solution
	$(BIN)/jaxscape plot $(CONTRAST)/trajectory_random.zarr $(CONTRAST)/trajectory_solution.zarr $(CONTRAST)/trajectory.zarr \
	  --title "two random directions" --title "end to start, and random" --title "principal directions" --out docs/random_axes.png

test: env
	$(BIN)/python -m pytest

test-all: env
	JAX_NUM_CPU_DEVICES=8 $(BIN)/python -m pytest -m ''

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: env
	$(BIN)/pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/python -m benchmarks.exact
	$(BIN)/python -m benchmarks.tolerance
	$(BIN)/python -m benchmarks.precision
	$(BIN)/python -m benchmarks.calibration
	$(BIN)/python -m benchmarks.training
	$(BIN)/python -m benchmarks.scaling
	$(BIN)/python -m benchmarks.nan_protection
	$(BIN)/python -m benchmarks.hessian
	$(BIN)/python -m benchmarks.trajectory
	$(BIN)/python -m benchmarks.saving
	$(BIN)/python -m benchmarks.streaming
	$(BIN)/python -m benchmarks.first

clean:
	rm -rf .venv demo
