"""The benchmark of accelerators runs on a CPU at a small size."""

import re

import jax
import numpy as np
import pytest

from benchmarks import gpt, gpu


@pytest.mark.slow  # minutes: it compiles fifteen programs
@pytest.mark.parametrize("part", gpu.PARTS)
def test_every_part_measures_something(part, capsys):
    gpu.main([part, "--small"])
    lines = capsys.readouterr().out.splitlines()[1:]
    assert f"{part}: " in lines[-2]
    measured = [line for line in lines if re.search(r"[\d,]+ (images|tokens)/s", line)]
    assert measured or (part == "training" and gpu.torch is None)
    assert not [line for line in lines if "Error" in line]


def test_both_forms_of_gpt_agree():
    torch = pytest.importorskip("torch")
    size = gpt.Size(layers=2, width=12, heads=3, vocabulary=7, context=5)
    params, data = gpt.params(size), gpt.random_tokens(size, 4)
    params = jax.tree.map(lambda x: 10 * x, params)  # large enough for every part to matter
    weights = jax.tree.map(lambda x: torch.from_numpy(np.array(x)), params)
    theirs = gpt.torch_loss(size)(weights, torch.from_numpy(data[0]).long())
    np.testing.assert_allclose(gpt.loss(size)(params, data), theirs, rtol=1e-5)


def test_a_form_that_fails_is_named_and_the_others_go_on(capsys):
    def fails():
        raise RuntimeError("out of memory\nand more")

    assert gpu.report("bfloat16", 1, "images", fails) is None
    assert gpu.report("float32", 1, "images", lambda: None) >= 0
    assert capsys.readouterr().out.startswith("bfloat16: RuntimeError: out of memory\nfloat32: ")
