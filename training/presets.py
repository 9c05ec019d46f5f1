"""The runs of the paper's tables and figures."""

import itertools
from dataclasses import replace

from training.config import Config

_RESNETS = (  # appendix A.6, table 2: network, without shortcuts, initial learning rate
    ("resnet20", False, 0.1),
    ("resnet20", True, 0.1),
    ("resnet56", False, 0.1),
    ("resnet56", True, 0.1),
    ("resnet56", True, 0.01),
    ("resnet110", False, 0.1),
    ("resnet110", True, 0.01),
)


def _small_and_large(arch: str, large: int) -> list[Config]:
    """Runs with SGD and Adam, small and large batches, without and with weight decay."""
    choices = itertools.product(("sgd", "adam"), (0.0, 5e-4), (128, large))
    return [
        Config(arch=arch, dataset="cifar10", optimizer=optimizer, weight_decay=decay, batch_size=size)
        for optimizer, decay, size in choices
    ]


def _paths(examples: int) -> list[Config]:
    """The runs of the paper's figure 9 on digits: a large batch has half of the examples, each epoch saves weights."""
    runs = [replace(c, dataset="digits", epochs=30) for c in _small_and_large("vgg9", examples // 2 + 1)]
    return [replace(c, save_every=30, save_steps=-(-examples // c.batch_size)) for c in runs]


PRESETS: dict[str, list[Config]] = {
    "paper-fig2": _small_and_large("vgg9", 8192),  # figures 2 and 3
    "paper-table1": _small_and_large("resnet56", 4096),  # and figures 14 and 15
    "digits-fig9": _paths(1437),
    "paper-table2": [Config(arch=a, noshort=n, dataset="cifar10", lr=lr) for a, n, lr in _RESNETS],  # and figure 5
}
