"""Which axes index filters, in every library; and the law that a direction's filters have the norms of the weights'."""

import itertools

import equinox as eqx
import jax
import numpy as np
import pytest

import jaxscape as js
import models
from jaxscape import trees
from jaxscape.normalize import Filters, filters_of_leaves, reasons_to_ignore, rescale, warn_of_doubts
from tests import library_params as library
from tests.problems import slow_but
from tests.test_bias_norm import shaped


def filters(params, filter_axis=None):
    """Axes and assumption of each leaf, by path."""
    return dict(zip(trees.leaf_names(params), filters_of_leaves(params, filter_axis), strict=True))


def axes(params, filter_axis=None):
    """Axes of the leaves that are not ignored, by path."""
    rows = zip(filters(params, filter_axis).items(), reasons_to_ignore(params, "bias_norm"), strict=True)
    return {name: part.axes for (name, part), reason in rows if reason is None}


ATTENTION = {"query": (1, 2), "key": (1, 2), "value": (1, 2), "out": (2,)}

# By hand: the axes of one output neuron, or of one token's vector, in each library's layout.
EQUINOX = {
    **{f".attention.{name}_proj.weight": (0,) for name in ("query", "key", "value", "output")},
    **{f".layers[{i}].weight": (0,) for i in (0, 3)},
    **{f".{name}.weight": (0,) for name in ("conv", "conv_1d", "depthwise", "up", "embedding")},
    ".cell.weight_ih": (0,),
    ".cell.weight_hh": (0,),
}
LINEN = {
    **{f"['MultiHeadDotProductAttention_0']['{name}']['kernel']": at for name, at in ATTENTION.items()},
    "['Conv_0']['kernel']": (2,),
    "['Dense_0']['kernel']": (1,),
    "['up']['kernel']": (1,),
}
NNX = {
    **{f"['attend']['{name}']['kernel'].value": at for name, at in ATTENTION.items()},
    **{f"['layers'][{i}]['kernel'].value": (1,) for i in (0, 1)},
}
HAIKU = {
    **{f"['multi_head_attention/{name}']['w']": (1,) for name in ("query", "key", "value", "linear")},
    "['conv2_d']['w']": (3,),
    "['conv2_d_transpose']['w']": (2,),  # (height, width, out, in)
    "['depthwise_conv2_d']['w']": (2, 3),  # (height, width, 1, out)
    "['embed']['embeddings']": (0,),
    "['linear']['w']": (1,),
}
KERAS = {
    **{f"['multi_head_attention/{name}/kernel']": ATTENTION[name] for name in ("query", "key", "value")},
    "['multi_head_attention/attention_output/kernel']": (2,),
    "['conv2d/kernel']": (3,),
    "['conv2d_transpose/kernel']": (2,),
    "['depthwise_conv2d/kernel']": (2, 3),  # (height, width, in, outputs of each)
    "['separable_conv2d/depthwise_kernel']": (2, 3),
    "['separable_conv2d/pointwise_kernel']": (3,),
    "['embedding/embeddings']": (0,),
    "['gru/gru_cell/kernel']": (1,),
    "['gru/gru_cell/recurrent_kernel']": (1,),
    "['dense_1/kernel']": (1,),
}
HUGGINGFACE_FLAX = {
    **{f"['encoder']['attention']['self']['{name}']['kernel']": (1,) for name in ("query", "key", "value")},
    "['encoder']['output']['dense']['kernel']": (1,),
    "['patch_embeddings']['projection']['kernel']": (3,),
    "['transformer']['h']['0']['attn']['c_attn']['kernel']": (0,),  # transposed in the call
    "['transformer']['wte']['embedding']": (0,),
}
HUGGINGFACE_TORCH = {
    "['encoder.attention.self.query.weight']": (0,),
    "['encoder.output.dense.weight']": (0,),
    "['patch_embeddings.projection.weight']": (0,),
    "['transformer.h.0.attn.c_attn.weight']": (1,),  # GPT-2's Conv1D
    "['transformer.wte.weight']": (0,),
}


@pytest.mark.parametrize(
    ("make", "filter_axis", "expected"),
    [
        (library.equinox_block, "equinox", EQUINOX),
        (library.linen_block, "flax", LINEN),
        (library.linen_block, None, LINEN),
        (lambda: library.linen_block(use_bias=False), None, LINEN),
        (library.nnx_block, "flax", NNX),
        (library.nnx_block, None, NNX),
        (library.haiku_net, "haiku", HAIKU),
        (library.haiku_net, None, HAIKU),
        (library.keras_net, "keras", KERAS),
        (library.keras_net, None, KERAS),
        (library.huggingface_flax, "huggingface", HUGGINGFACE_FLAX),
        (library.huggingface_torch, "huggingface", HUGGINGFACE_TORCH),
    ],
)
def test_axes_in_each_library(make, filter_axis, expected):
    assert axes(make(), filter_axis) == expected


@pytest.mark.parametrize("layers", slow_but([8], [2, 8]))  # 8: as many as there are inputs
@pytest.mark.parametrize(
    ("layer", "stack", "filter_axis"),
    [
        (library.equinox_block, library.equinox_stack, "equinox"),
        (library.linen_block, library.linen_stack, "flax"),
        (library.linen_block, library.linen_stack, None),
        (library.linen_block, lambda n: library.linen_stack(n, use_bias=False), "flax"),
        (library.linen_block, lambda n: library.linen_stack(n, use_bias=False), None),
        (library.nnx_block, library.nnx_stack, "flax"),
        (library.nnx_block, library.nnx_stack, None),
        (library.haiku_block, library.haiku_block, "haiku"),
        (library.haiku_block, library.haiku_block, None),
    ],
)
def test_stacked_layers_are_filters_of_their_own(layer, stack, filter_axis, layers):
    of_layer, of_stack = axes(layer(), filter_axis), filters(stack(layers), filter_axis)
    of_blocks = {name.replace("__layer_stack_no_per_layer/", ""): part for name, part in of_stack.items()}
    for name, inner in of_layer.items():
        assert of_blocks[name] == Filters((0, *(a + 1 for a in inner))), name


@pytest.mark.parametrize(
    ("params", "filter_axis", "expected"),
    [
        # Settled by the bias.
        (shaped(a__kernel=(5, 2, 3), a__bias=(2, 3)), None, Filters((1, 2))),
        (shaped(a__kernel=(2, 3, 5), a__bias=(5,)), None, Filters((2,))),
        (shaped(a__kernel=(4, 5, 3), a__bias=(4, 3)), None, Filters((0, 2))),
        (shaped(a__w=(4, 5, 2, 3), a__b=(4, 2, 3)), None, Filters((0, 2, 3))),
        (shaped(a__kernel=(4, 5, 1), a__bias=(4, 1)), None, Filters((0, 2))),
        (shaped(a__kernel=(6, 6, 15, 3), a__bias=(6, 6, 3)), None, Filters((0, 1, 3))),  # ConvLocal
        (shaped(ConvTranspose_0__kernel=(3, 3, 4, 2), ConvTranspose_0__bias=(2,)), "flax", Filters((3,))),
        (shaped(ConvTranspose_0__kernel=(3, 3, 2, 4), ConvTranspose_0__bias=(2,)), "flax", Filters((2,))),
        (shaped(conv__weight=(4, 3, 5, 5), conv__bias=(4, 1, 1)), "equinox", Filters((0,))),
        (shaped(conv__weight=(2, 4, 3, 5, 5), conv__bias=(2, 4, 1, 1)), "equinox", Filters((0, 1))),
        (shaped(a__weight=(3, 3, 3), a__bias=(3, 3)), "equinox", Filters((0, 1))),
        # Two choices fit the bias; the name is one of them.
        (shaped(Dense_0__kernel=(4, 4, 3), Dense_0__bias=(4, 3)), None, Filters((0, 2))),
        (shaped(query__kernel=(4, 4, 3), query__bias=(4, 3), key__w=(4,), value__w=(4,)), None, Filters((1, 2))),
        # Settled by names.
        (shaped(Dense_0__kernel=(5, 3)), None, Filters((1,))),
        (shaped(embed__embedding=(2, 5, 3)), None, Filters((0, 1))),
        (shaped(pos_embedding=(1, 5, 3)), None, Filters((0, 1))),
        (shaped(linear__weight=(3, 5)), "equinox", Filters((0,))),
        (shaped(conv1__kernel=(3, 4, 5)), None, Filters((2,))),
        (shaped(conv2d__kernel=(2, 3, 3, 4, 5)), "keras", Filters((0, 4), "axis 0 is stacked layers")),
        (shaped(layer__query__kernel=(2, 4, 4)), "huggingface", Filters((0, 2), "axis 0 is stacked layers")),
        (shaped(Dense_0__kernel=(2, 3, 5, 7)), None, Filters((0, 1, 3), "axes 0 to 1 are stacked layers")),
        # Not settled.
        (shaped(a__kernel=(4, 5, 3)), None, Filters((2,), "the last axis")),
        (shaped(query__kernel=(5, 2, 3)), None, Filters((2,), "the last axis")),  # no key and value beside it
        (shaped(Conv_0__kernel=(3, 3, 4, 5)), None, Filters((3,), "no stacked layers")),
        (shaped(DenseGeneral_0__kernel=(5, 2, 3)), "flax", Filters((2,), "the last axis")),
        (
            shaped(a__kernel=(4, 4, 3), a__bias=(4, 3)),
            None,
            Filters((0, 2), "the first of 2 choices that fit the bias"),
        ),
        (shaped(a__weight=(4, 5, 3)), "equinox", Filters((0,), "the first axis")),
        (library.equinox_params(lambda key: eqx.nn.Conv(2, 3, 4, 5, key=key)), "equinox", Filters((0,))),
        (
            library.equinox_params(lambda key: eqx.nn.Conv(2, 3, 4, 5, use_bias=False, key=key)),
            "equinox",
            Filters((0,), "no stacked layers"),  # the class does not say how many axes are spatial
        ),
        # The convention, even against the bias: a warning says so where it matters.
        (shaped(a__weight=(4, 5), a__bias=(4,)), None, Filters((1,))),
        # A leaf of rank 1 and a bias of any rank: each entry is a filter.
        (shaped(a=(4,)), "flax", Filters((0,))),
        (shaped(a__bias=(4, 3)), "flax", Filters((0, 1))),
    ],
)
def test_axes_by_name_and_shape(params, filter_axis, expected):
    shapes = {name: leaf.ndim for name, leaf in zip(trees.leaf_names(params), jax.tree.leaves(params), strict=True)}
    largest = max(shapes, key=lambda name: (shapes[name], "bias" not in name))
    assert filters(params, filter_axis)[largest] == expected


def test_the_class_of_an_equinox_layer_goes_before_what_looks_like_a_stack():
    def make(key):  # all first axes are 4, and the normalization has rank 2
        return [eqx.nn.LayerNorm((4, 6)), eqx.nn.Conv1d(4, 4, 3, use_bias=False, key=key)]

    assert axes(library.equinox_params(make), "equinox") == {"[1].weight": (0,)}


def test_convolutions_of_1_by_1_in_attention_have_no_heads():
    params = shaped(**{f"{name}__kernel": (1, 1, 4, 5) for name in ("query", "key", "value")})
    assert set(axes(params).values()) == {(3,)}


def loop_norms(leaf, at):
    """The norm of every filter, by a loop over the indices of filters."""
    leaf = np.asarray(leaf)
    norms = {}
    for index in itertools.product(*(range(leaf.shape[a]) for a in at)):
        place = [slice(None)] * leaf.ndim
        for a, i in zip(at, index, strict=True):
            place[a] = i
        norms[index] = np.sqrt(sum(float(x) ** 2 for x in leaf[tuple(place)].ravel()))
    return np.array(list(norms.values()))


ATTENTION_STACK = library.normal(
    library.zeros(
        {
            "attend": {
                "query": {"kernel": (3, 5, 2, 4), "bias": (3, 2, 4)},  # (layers, in, heads, dim)
                "out": {"kernel": (3, 2, 4, 5), "bias": (3, 5)},
            },
            "embed": {"embedding": (7, 5)},
        }
    )
)


@pytest.mark.parametrize("filter_axis", [None, "flax"])
def test_every_head_of_every_layer_keeps_the_norms_of_its_filters(filter_axis):
    directions = js.random_directions(0, ATTENTION_STACK, num=1, filter_axis=filter_axis)
    expected = {
        "['attend']['query']['kernel']": ((0, 2, 3), "filter: 24 over axes 0, 2, 3"),
        "['attend']['out']['kernel']": ((0, 3), "filter: 15 over axes 0, 3"),
        "['embed']['embedding']": ((0,), "filter: 7 over axis 0"),
    }
    names, rules = trees.leaf_names(ATTENTION_STACK), directions.rules
    leaves = zip(names, rules, jax.tree.leaves(directions[0]), jax.tree.leaves(ATTENTION_STACK), strict=True)
    for name, rule, d, w in leaves:
        if name in expected:
            at, words = expected[name]
            np.testing.assert_allclose(loop_norms(d, at), loop_norms(w, at), rtol=1e-12)
            assert rule == words


@pytest.mark.parametrize("norm", ["filter", "dfilter"])
def test_scaling_a_stack_is_scaling_each_of_its_layers(norm):
    w = ATTENTION_STACK["attend"]["query"]["kernel"]
    d = library.normal(w, seed=1)
    inner = filters(shaped(a__kernel=(5, 2, 4), a__bias=(2, 4)))["['a']['kernel']"].axes
    whole = filters(shaped(a__kernel=(3, 5, 2, 4), a__bias=(3, 2, 4)))["['a']['kernel']"].axes
    expected = np.stack([rescale(d[i], w[i], norm, inner) for i in range(3)])
    np.testing.assert_allclose(rescale(d, w, norm, whole), expected, rtol=1e-12)


def test_an_assumption_is_explained():
    params = shaped(a__kernel=(2, 4, 3))
    table = js.random_directions(0, params, num=1).explain(params)
    assert list(table.rule) == ["filter: 3 over axis 2 (assumed: the last axis)"]


def test_an_unknown_library_is_refused():
    match = r"filter_axis is 'torch', expected None, an int, a function or one of 'flax', 'equinox', 'haiku'"
    with pytest.raises(ValueError, match=match):
        js.random_directions(0, shaped(w=(2, 3)), filter_axis="torch")


def test_the_library_is_part_of_the_recipe():
    recipe = dict(js.random_directions(0, shaped(w=(2, 3)), num=1, filter_axis="haiku").recipe)
    assert recipe["filter_axis"] == "haiku"


def doubts(params, filter_axis=None, norm="filter"):
    """Warn as `random_directions` does, without drawing."""
    plan = (reasons_to_ignore(params, "bias_norm"), filters_of_leaves(params, filter_axis))
    warn_of_doubts(params, norm, "bias_norm", filter_axis, *plan)


TURNED = {
    "an Equinox block": library.equinox_block(),
    "an Equinox stack": library.equinox_stack(2),
    "Hugging Face's PyTorch": library.huggingface_torch(),
    "2 of 3, by name and by bias": shaped(a__weight=(3, 3), b__w=(3, 5), b__b=(3,), c__kernel=(4, 5)),
}


@pytest.mark.parametrize("params", TURNED.values(), ids=TURNED)
def test_kernels_that_are_out_in_are_warned_of(params):
    with pytest.warns(UserWarning, match=r"\d of \d+ kernels look like \(out, in\).*filter_axis='equinox'"):
        doubts(params)
    doubts(params, -1)  # an axis is a decision
    doubts(params, "equinox")
    doubts(params, None, norm="layer")  # no filters


def test_random_directions_warns_once():
    with pytest.warns(UserWarning, match=r"1 of 1 kernels look like.*params\['weight'\] \(3, 4\)") as caught:
        js.random_directions(0, shaped(weight=(3, 4)), num=1)
    assert len(caught) == 1


NOT_TURNED = {
    "(in, out) by its bias": shaped(a__weight=(3, 5), a__bias=(5,)),
    "half of the kernels": shaped(a__weight=(3, 5), b__kernel=(3, 5)),
    "a Linen stack": library.linen_stack(2, use_bias=False),
    "Haiku": library.haiku_net(),
    "Keras": library.keras_net(),
    "Hugging Face's Flax": library.huggingface_flax(),
}


@pytest.mark.parametrize("params", NOT_TURNED.values(), ids=NOT_TURNED)
def test_other_kernels_are_not(params):
    doubts(params)


@pytest.mark.parametrize("name", ["resnet20", "vgg9"])
def test_networks_of_this_project_are_settled(name):
    from flax import nnx

    network = nnx.eval_shape(lambda: models.create(name, num_classes=3, image_shape=(8, 8, 1)))
    params = nnx.state(network, nnx.Param)
    doubts(params)
    for leaf, reason, part in zip(
        jax.tree.leaves(params), reasons_to_ignore(params, "bias_norm"), filters_of_leaves(params, None), strict=True
    ):
        assert (reason is None) == (leaf.ndim > 1)
        assert part == Filters((leaf.ndim - 1,))
