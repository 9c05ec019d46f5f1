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

# The paper's figure 5 on embedded data: the same deep ResNet with and without shortcuts.
DEMO := $(BIN)/python train.py --dataset digits --arch resnet56 --epochs 30 --lr 0.05 --resume
COMPARE := $(BIN)/jaxscape plot demo/resnet56/surface.zarr demo/resnet56_noshort/surface.zarr --loss-max 1000
demo: env
	$(DEMO) --out demo/resnet56
	$(DEMO) --noshort --out demo/resnet56_noshort
	$(BIN)/jaxscape surface demo/resnet56 --points 25
	$(BIN)/jaxscape surface demo/resnet56_noshort --points 25
	$(COMPARE) --kind contour --out demo/contours.png
	$(COMPARE) --kind surface3d --out demo/surfaces.png
	$(BIN)/jaxscape report demo/resnet56 demo/resnet56_noshort
	@echo "side by side: demo/contours.png demo/surfaces.png"

# The picture of the README.
docs/contours.png: demo
	mkdir -p docs
	cp demo/contours.png $@

# The paper's figure 7 for the same networks: both ends of the Hessian's spectrum over the planes of the demo.
HESSIAN := --points 11 --subset 256 --weights-only
docs/eigenvalues.png: demo
	$(BIN)/jaxscape hessian demo/resnet56 $(HESSIAN)
	$(BIN)/jaxscape hessian demo/resnet56_noshort $(HESSIAN)
	$(BIN)/jaxscape plot demo/resnet56/hessian.zarr demo/resnet56_noshort/hessian.zarr --out $@

# The paper's figures 9 and 8 on digits: paths of 8 runs in their principal planes; one of them in other planes, too.
PATHS := runs/figure9
CONTRAST := $(PATHS)/vgg9_digits_epochs=30
docs/trajectories.png: env
	$(BIN)/python train.py --preset digits-fig9 --out $(PATHS) --resume
	$(BIN)/jaxscape trajectory $(PATHS)/*digits_[!o]* $(PATHS)/*adam* --steps --out docs/trajectories.png
	$(BIN)/jaxscape trajectory $(CONTRAST) --steps --directions random
	$(BIN)/jaxscape trajectory $(CONTRAST) --steps --directions solution
	$(BIN)/jaxscape plot $(CONTRAST)/trajectory_random.zarr $(CONTRAST)/trajectory_solution.zarr $(CONTRAST)/trajectory.zarr \
	  --titles "two random directions" "end to start, and random" "principal directions" --out docs/random_axes.png

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

clean:
	rm -rf .venv demo
