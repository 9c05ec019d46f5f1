"""The options of a run, and the optimizer that they define."""

import dataclasses
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

import models
from jaxscape import datasets, runs
from jaxscape.run_checkpoints import STEP_DTYPES

OPTIMIZERS = {"sgd": 0.1, "adam": 1e-3}  # the paper's initial learning rates, section 5
PRECISIONS = ("float32", "bfloat16")
# The paper trains networks without shortcuts and with this many layers or more at a tenth of the rate (appendix A.6).
DEEP = 56


@dataclasses.dataclass(frozen=True)
class Config:
    """The options of a run; the defaults are those of the paper (section 5 and appendix A.5)."""

    arch: str = "resnet56"
    builder: str = runs.BUILDER  # package.module:function that creates the network, see `jaxscape.runs.build_model`
    noshort: bool = False  # without shortcuts
    width: int = 1  # factor of the widths of a residual network
    dataset: str = "digits"
    data_dir: str | None = None
    augment: bool | None = None  # None: only color images are augmented
    label_noise: float = 0.0  # share of the training labels that are replaced by random labels
    loss: str = "crossentropy"
    optimizer: str = "sgd"
    lr: float | None = None  # None: 0.1 for sgd, 0.01 for sgd if deep and without shortcuts, 0.001 for adam
    batch_size: int = 128
    accumulate: int = 1  # number of parts of a batch, computed one after another
    weight_decay: float = 5e-4
    decay_norm: bool = True  # whether weight decay applies to biases and normalization parameters too
    momentum: float = 0.9
    epochs: int = 300
    warmup: int = 0  # number of first epochs in which the learning rate grows from 0
    precision: str = "float32"
    seed: int = 0
    save_every: int = 10  # number of epochs between two checkpoints
    save_steps: int = 0  # number of steps between two checkpoints within epochs; 0: there are none
    steps_dtype: str = "float32"  # dtype of these; in 16 bits they are differences from the initialization

    def __post_init__(self) -> None:
        """Refuse options that cannot be trained, before anything is written."""
        for name, known in (
            *([("arch", models.names())] if self.builder == runs.BUILDER else []),
            ("dataset", datasets.LOADERS),
            ("loss", runs.LOSSES),
            ("optimizer", OPTIMIZERS),
            ("steps_dtype", STEP_DTYPES),
            ("precision", PRECISIONS),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected one of {', '.join(known)}.")
        for name in ("width", "batch_size", "accumulate", "epochs", "save_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1.")
        for name, top in (("lr", math.inf), ("weight_decay", math.inf), ("momentum", 1.0)):
            value = getattr(self, name)
            if value is not None and not 0 <= value < top:
                bound = "" if top == math.inf else f", below {top:g}"
                raise ValueError(f"{name} is {value}, expected a number of at least 0{bound}.")
        if self.save_steps < 0:
            raise ValueError(f"save_steps is {self.save_steps}, expected at least 0.")
        if not 0 <= self.warmup < self.epochs:
            raise ValueError(f"warmup is {self.warmup}, expected less than the {self.epochs} epochs, and not below 0.")
        if not 0 <= self.label_noise <= 1:
            raise ValueError(f"label_noise is {self.label_noise}, expected a share from 0 to 1.")

    @property
    def learning_rate(self) -> float:
        """The initial learning rate, after the warm-up."""
        if self.lr is not None:
            return self.lr
        depth = re.match(r"\D+(\d+)", self.arch)
        hard = self.noshort and depth is not None and int(depth[1]) >= DEEP
        return OPTIMIZERS[self.optimizer] / (10 if hard and self.optimizer == "sgd" else 1)

    @property
    def drops(self) -> tuple[int, ...]:
        """The epochs after which the learning rate is divided by 10: 50 %, 75 % and 91.7 % (150, 225, 275 of 300)."""
        return tuple(self.epochs * twelfths // 12 for twelfths in (6, 9, 11))

    def rate_in(self, epoch: Any) -> Any:
        """The learning rate in an epoch, without the warm-up; epochs count from 1, and the epoch may be traced."""
        return self.learning_rate / 10 ** sum(1 * (drop < epoch) for drop in self.drops)

    def is_saved(self, epoch: int) -> bool:
        """Whether an epoch has a checkpoint: epochs 0 and 1, every ``save_every`` epochs, the drops, and the last."""
        return epoch % self.save_every == 0 or epoch in (1, *self.drops, self.epochs)


def make_optimizer(config: Config, steps_per_epoch: int) -> optax.GradientTransformation:
    """Nesterov SGD or Adam with the paper's schedule of the learning rate; weight decay is added to the gradient."""

    def schedule(steps_done: Array) -> Array:
        warmup_share = (steps_done + 1) / (config.warmup * steps_per_epoch) if config.warmup else 1.0
        return config.rate_in(steps_done // steps_per_epoch + 1) * jnp.minimum(warmup_share, 1.0)

    rule = optax.sgd(schedule, config.momentum, nesterov=True) if config.optimizer == "sgd" else optax.adam(schedule)
    mask = None if config.decay_norm else lambda params: jax.tree.map(lambda x: x.ndim > 1, params)
    return optax.chain(optax.add_decayed_weights(config.weight_decay, mask), rule)
