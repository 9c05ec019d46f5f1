"""Which leaves count as biases and normalization parameters: in every library, stacked and not, and never a kernel."""

import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxscape as js
from jaxscape import trees
from jaxscape.normalize import reasons_to_ignore
from jaxscape.normalize._bias_norm import NORMALIZATION, read_leaves
from jaxscape.normalize._names import describe, label
from tests import library_params as library


def reasons(params):
    """Why each leaf is ignored, by path."""
    return dict(zip(trees.leaf_names(params), reasons_to_ignore(params, "bias_norm"), strict=True))


def weights(params):
    """Paths of the leaves that are not ignored."""
    return {name for name, reason in reasons(params).items() if reason is None}


def shaped(**shapes):
    """A dict of normal arrays; ``__`` parts modules."""
    tree: dict = {}
    for path, shape in shapes.items():
        *modules, name = path.split("__")
        inner = tree
        for module in modules:
            inner = inner.setdefault(module, {})
        inner[name] = jax.device_put(np.random.default_rng(len(path)).normal(size=shape))
    return tree


# By hand, from each library's documentation: what is a weight; all else is a bias or belongs to a normalization.
EQUINOX_WEIGHTS = {
    *(f".attention.{name}_proj.weight" for name in ("query", "key", "value", "output")),
    *(f".layers[{i}].weight" for i in (0, 3)),
    *(f".{name}.weight" for name in ("conv", "conv_1d", "depthwise", "up", "embedding")),
    ".cell.weight_ih",
    ".cell.weight_hh",
}
LINEN_WEIGHTS = {
    *(f"['MultiHeadDotProductAttention_0']['{name}']['kernel']" for name in ("query", "key", "value", "out")),
    *(f"['{name}']['kernel']" for name in ("Conv_0", "Dense_0", "up")),
}
NNX_WEIGHTS = {
    *(f"['attend']['{name}']['kernel'].value" for name in ("query", "key", "value", "out")),
    *(f"['layers'][{i}]['kernel'].value" for i in (0, 1)),
}
HAIKU_WEIGHTS = {
    *(f"['{name}']['w']" for name in ("conv2_d", "conv2_d_transpose", "depthwise_conv2_d", "linear")),
    *(f"['multi_head_attention/{name}']['w']" for name in ("query", "key", "value", "linear")),
    "['embed']['embeddings']",
}
KERAS_WEIGHTS = {name for name in trees.leaf_names(library.keras_net()) if "kernel" in name or "embeddings'" in name}
HUGGINGFACE_WEIGHTS = {
    name for name in trees.leaf_names(library.huggingface_flax()) if name.endswith(("['kernel']", "['embedding']"))
}
TORCH_WEIGHTS = {
    name for name in trees.leaf_names(library.huggingface_torch()) if ".weight" in name and "ln_1" not in name
}
MODELS = {
    "equinox": (library.equinox_block, EQUINOX_WEIGHTS),
    "equinox by vmap": (lambda: library.equinox_stack(3), EQUINOX_WEIGHTS),
    "linen": (library.linen_block, LINEN_WEIGHTS),
    "linen by scan": (lambda: library.linen_stack(3), LINEN_WEIGHTS),
    "linen by scan without biases": (lambda: library.linen_stack(8, use_bias=False), LINEN_WEIGHTS),
    "nnx": (library.nnx_block, NNX_WEIGHTS),
    "nnx by vmap": (lambda: library.nnx_stack(3), NNX_WEIGHTS),
    "haiku": (library.haiku_net, HAIKU_WEIGHTS),
    "haiku by layer_stack": (lambda: library.haiku_block(3), {"['__layer_stack_no_per_layer/linear']['w']"}),
    "keras": (library.keras_net, KERAS_WEIGHTS),
    "huggingface flax": (library.huggingface_flax, HUGGINGFACE_WEIGHTS),
    "huggingface torch": (library.huggingface_torch, TORCH_WEIGHTS),
}


@pytest.mark.parametrize("model", MODELS)
def test_all_but_the_weights_is_ignored(model):
    make, expected = MODELS[model]
    assert weights(make()) == expected


def test_ignored_leaves_get_a_zero_direction():
    params = shaped(query__kernel=(3, 2, 2), query__bias=(2, 2), batch_norm__scale=(1, 1, 1, 4))
    direction = js.random_directions(0, params, num=1)[0]
    for d, (name, reason) in zip(jax.tree.leaves(direction), reasons(params).items(), strict=True):
        assert np.any(d) == (reason is None), name


@pytest.mark.parametrize(
    ("layer", "stack"),
    [
        (library.equinox_block, library.equinox_stack),
        (library.linen_block, library.linen_stack),
        (library.nnx_block, library.nnx_stack),
        (library.haiku_block, library.haiku_block),
    ],
    ids=["equinox", "linen", "nnx", "haiku"],
)
@pytest.mark.parametrize("layers", [2, 8])  # 8: as many as there are inputs
def test_a_stack_ignores_what_its_layers_ignore(layer, stack, layers):
    of_layer, of_stack = reasons_to_ignore(layer(), "bias_norm"), reasons_to_ignore(stack(layers), "bias_norm")
    assert [reason is None for reason in of_layer] == [reason is None for reason in of_stack]


@pytest.mark.parametrize(
    "params",
    [
        shaped(biased_kernel=(3, 4), w_scale=(3, 4), unbiased=(3, 4), scaled=(3, 4)),
        shaped(norm_proj__kernel=(3, 4), norm_proj__weight=(3, 4), scale_net__Dense_0__kernel=(3, 4)),
        shaped(layer_norm__kernel=(3, 4), bias__kernel=(3, 4), LayerNorm_0__w=(3, 4)),
        shaped(norm__weight=(8, 4), norm__bias=(8,)),  # a Linear that is called norm: its bias says so
        shaped(conv_norm__conv__kernel=(3, 3, 2, 4), normal__w=(3, 4), learning__kernel=(3, 4)),
        shaped(relative_attention_bias__embedding=(8, 2), bn_stem__kernel=(3, 4)),
        shaped(a=(4, 4), b=(4, 4)),  # no weight stands beside the b
    ],
    ids=lambda params: ",".join(params),
)
def test_a_weight_is_not_ignored_for_a_part_of_a_name(params):
    matrices = zip(trees.leaf_names(params), jax.tree.leaves(params), strict=True)
    assert weights(params) == {name for name, leaf in matrices if leaf.ndim > 1}


class Named(eqx.Module):
    """Attributes that say the contrary of their class."""

    norm: eqx.nn.Linear
    linear: eqx.nn.RMSNorm


def test_the_class_of_an_equinox_layer_goes_before_its_name():
    def make(key):
        return Named(eqx.nn.Linear(4, 3, use_bias=False, key=key), eqx.nn.RMSNorm(4, use_bias=False))

    params = library.equinox_params(lambda key: eqx.filter_vmap(make)(jax.random.split(key, 2)))
    assert weights(params) == {".norm.weight"}


@pytest.mark.parametrize(
    ("leaf", "params", "reason"),
    [
        ("['any']", shaped(any=(3,)), "rank <= 1"),
        ("['dense']['bias']", shaped(dense__bias=(2, 3)), "bias (by name)"),
        ("['biases'][0]", {"weights": [jnp.ones((2, 3, 4))], "biases": [jnp.ones((2, 4))]}, "bias (by name)"),
        ("[('Dense_0', 'bias')]", {("Dense_0", "bias"): jnp.ones((2, 4))}, "bias (by name)"),
        ("['layer']['b']", shaped(layer__w=(2, 3, 4), layer__b=(2, 4)), "bias (by name)"),
        ("['bias']['b']", shaped(bias__b=(4, 4, 3)), "bias (by name)"),
        ("['net']['scale']", shaped(net__scale=(1, 1, 1, 4)), "normalization (by name and shape)"),
        ("['net']['offset']", shaped(net__offset=(1, 4, 1, 1)), "normalization (by name and shape)"),
        ("['first']['scale']", shaped(first__scale=(3, 4), first__bias=(3, 4)), "normalization (by name and shape)"),
        ("['first']['weight']", shaped(first__weight=(3, 4), first__bias=(3, 4)), "normalization (by name and shape)"),
        ("['first']['beta']", shaped(first__gamma=(3, 4), first__beta=(3, 4)), "normalization (by name and shape)"),
        ("['BatchNorm_0']['mean']", shaped(BatchNorm_0__mean=(3, 4)), "normalization (by name)"),
        ("['final_layernorm']['scale']", shaped(final_layernorm__scale=(3, 4)), "normalization (by name)"),
        ("['ln_1']['weight']", shaped(ln_1__weight=(3, 4)), "normalization (by name)"),
        (
            "['pre']['scale']",
            shaped(ln__scale=(3, 4), up__kernel=(3, 4, 5), pre__scale=(3, 4)),
            "normalization (by name, in stacked layers)",
        ),
        ("['pre']['scale']", shaped(up__kernel=(3, 4, 5), pre__scale=(3, 4)), None),
    ],
    ids=lambda value: None if isinstance(value, dict) else str(value),
)
def test_reasons(leaf, params, reason):
    assert reasons(params)[leaf] == reason


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *(
            (name, True)
            for name in ("LayerNorm_0", "BatchNorm", "RMSNorm", "norm1", "ln_f", "ln_1", "bn2", "GroupNorm_3")
        ),
        *(
            (name, True)
            for name in ("batch_normalization_2", "layer_norm", "input_layernorm", "layernorm_before", "q_norm")
        ),
        *((name, True) for name in ("norms", "norm_final", "BatchNorm2d", "attn_ln", "norm_f", "final_norm")),
        *(
            (name, False)
            for name in ("norm_proj", "normal", "abnormal_net", "learn", "scale", "ln_net", "column", "kiln")
        ),
        *((name, False) for name in ("norm_mlp", "layer_norm_dense", "bn_conv", "linear", "batch")),
    ],
)
def test_what_is_called_a_normalization(name, expected):
    assert bool(re.fullmatch(NORMALIZATION, label(name))) == expected


@jax.tree_util.register_pytree_node_class
class WithoutKeys:
    """A pytree that does not say how its children are called."""

    def __init__(self, *children):
        self.children = children

    def tree_flatten(self):
        return self.children, None

    @classmethod
    def tree_unflatten(cls, _, children):
        return cls(*children)


def test_names_are_read_from_every_kind_of_key():
    leaf = jnp.ones((2, 2))
    tree = [{"net/~/Linear_1": {"w": leaf}, "model.0.weight": leaf, "custom": WithoutKeys(leaf), "none": None}, leaf]
    assert [(x.name, x.module, x.kind) for x in describe(tree)] == [
        ("custom", "", "without_keys"),
        ("weight", "model", ""),
        ("w", "linear", ""),
        ("", "", ""),
    ]


@pytest.mark.parametrize(
    ("params", "layers"),
    [
        (shaped(blocks__mlp__kernel=(3, 4, 5), blocks__norm__scale=(3, 4), norm__scale=(4,)), [1, 1, 0]),
        (shaped(mlp__kernel=(4, 3, 5), norm__scale=(4, 3)), [1, 1]),
        (shaped(mlp__kernel=(4, 3, 5), norm__scale=(4, 3), out__kernel=(5, 3, 4)), [None, 1, None]),  # in the middle
        (shaped(mlp__kernel=(3, 4, 5), norm__scale=(4,)), [0, 0]),
        (shaped(mlp__kernel=(3, 4, 5)), [None]),
    ],
)
def test_layers_are_seen_by_their_normalizations(params, layers):
    assert [leaf.layers for leaf in read_leaves(params)] == layers


def attention_loss(params, batch):
    """Curvature 2 in the kernel, 200 in the bias, nothing between them."""
    penalty = jnp.sum(params["query"]["kernel"] ** 2) + 100 * jnp.sum(params["query"]["bias"] ** 2)
    return jnp.full(len(batch), penalty)


@pytest.mark.parametrize(("ignore", "curvature"), [("bias_norm", 0), (None, 200)])
def test_curvature_ignores_the_same_leaves(ignore, curvature):
    params = shaped(query__kernel=(3, 2, 2), query__bias=(2, 2))
    image = js.hvp(attention_loss, params, jnp.zeros(4), ignore=ignore)(params)["query"]
    np.testing.assert_allclose(image["kernel"], 2 * params["query"]["kernel"], rtol=1e-12)
    np.testing.assert_allclose(image["bias"], curvature * params["query"]["bias"], rtol=1e-12)


def test_explain_gives_the_reason():
    params = shaped(w=(2, 3), v=(3,), bias=(2, 3))
    assert list(js.random_directions(0, params, num=1).explain(params).rule) == [
        "ignored: bias (by name)",
        "ignored: rank <= 1",
        "filter: 3 over axis 1",
    ]
    table = js.random_directions(0, params, num=1, ignore=lambda path, leaf: leaf.ndim > 1).explain(params)
    assert list(table.rule) == ["ignored: predicate", "filter: 3 over axis 0", "ignored: predicate"]


@pytest.mark.parametrize(
    "params",
    [
        shaped(pre__scale=(3, 4), up__w=(3, 4)),
        shaped(position_bias=(3, 4), up__w=(3, 4)),
        shaped(beta=(5, 1)),
        shaped(w=(3, 4), b=(3, 4)),
    ],
    ids=lambda params: ",".join(params),
)
def test_a_leaf_that_is_only_named_like_a_bias_is_perturbed_with_a_warning(params):
    with pytest.warns(UserWarning, match=r"ignore='bias_norm' perturbs params.*named like a bias.*ignore=lambda"):
        js.random_directions(0, params)
    js.random_directions(0, params, ignore=None)  # asked for: no warning
    js.random_directions(0, params, ignore=lambda path, leaf: leaf.ndim <= 1)


def test_one_warning_lists_a_few_leaves():
    params = shaped(**{f"m{i}__scale": (3, 4) for i in range(5)})
    with pytest.warns(UserWarning, match=r"\['m0'\]\['scale'\] \(3, 4\).*\['m2'\]\['scale'\] .*and 2 more") as caught:
        js.random_directions(0, params)
    assert len(caught) == 1
