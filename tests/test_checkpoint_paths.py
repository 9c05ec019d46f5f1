"""What people have as a path: the numbers are those of the list of its pytrees, to the bit; or the error has a cure."""

import collections
import dataclasses
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from flax.core import FrozenDict

import jaxscape as js
from tests.problems import slow_but, slow_unless

DATA = np.random.default_rng(0).normal(size=(6, 4))
STEPS = 5
Net = collections.namedtuple("Net", ["w", "b"])


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Layer:
    w: jax.Array
    b: jax.Array


def stacked_leaves():
    rng = np.random.default_rng(1)
    return jnp.asarray(rng.normal(size=(STEPS, 4, 3))), jnp.asarray(rng.normal(size=(STEPS, 3)))


def slices(stacked):
    return [jax.tree.map(lambda x, i=i: x[i], stacked) for i in range(STEPS)]


def loss(params, batch):
    b, w = sorted(jax.tree.leaves(params), key=jnp.ndim)
    return ((batch @ w + b) ** 2).sum(-1)


W, B = stacked_leaves()
PATH = slices({"w": W, "b": B})
LIKE = PATH[0]


def values(result):
    return [np.asarray(result[name]) for name in sorted(map(str, result.variables))]


def projected(checkpoints, like=LIKE):
    return values(js.project(checkpoints, like, js.random_directions(0, like), progress=False))


def numbers(checkpoints, like=LIKE, loss_fn=loss):
    """What `trajectory` makes of a path in a given plane."""
    directions = js.random_directions(0, like)
    return values(
        js.trajectory(checkpoints, loss_fn, DATA, directions=directions, origin=like, points=3, progress=False)
    )


def principal(checkpoints):
    directions, ratio = js.pca_directions(checkpoints, progress=False)
    return [ratio, *jax.tree.leaves(directions.basis)]


def equal(a, b):
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        np.testing.assert_array_equal(x, y)


# ---- pytrees stacked by lax.scan


@pytest.mark.parametrize(
    "stacked",
    [
        {"w": W, "b": B},
        {"w": np.asarray(W), "b": np.asarray(B)},
        FrozenDict({"w": W, "b": B}),
        slow_unless(False, Net(W, B)),
        slow_unless(False, Layer(W, B)),
        nnx.State({"w": nnx.Param(W), "b": nnx.Param(B)}),
    ],
    ids=["dict", "numpy", "FrozenDict", "NamedTuple", "dataclass", "nnx.State"],
)
def test_a_stacked_pytree_is_the_list_of_its_slices(stacked):
    path = slices(stacked)
    equal(principal(stacked), principal(path))
    equal(projected(stacked, path[0]), projected(path, path[0]))


def test_what_lax_scan_gives():
    def step(p, _):
        p = jax.tree.map(lambda a, g: a - 0.02 * g, p, jax.grad(lambda p: loss(p, DATA).mean())(p))
        return p, p

    _, stacked = jax.lax.scan(step, PATH[0], length=STEPS)
    result, expected = (js.trajectory(p, loss, DATA, points=3, progress=False) for p in (stacked, slices(stacked)))
    equal(values(result), values(expected))
    assert result.sizes["step"] == STEPS


def test_an_array_is_a_path_of_arrays():
    equal(principal(W), principal(list(W)))
    equal(principal(np.asarray(W)), principal(list(W)))
    equal(*(numbers(path, W[0], lambda w, x: (x @ w).sum(-1) ** 2) for path in (W, list(W))))


def test_a_list_is_a_sequence_unless_it_has_the_leaves_of_the_origin():
    stacked = [W, B]
    equal(numbers(stacked, [W[0], B[0]]), numbers(slices(stacked), [W[0], B[0]]))
    directions = js.random_directions(0, [W[0], B[0]])
    result = js.trajectory(stacked, loss, DATA, directions=directions, points=3, progress=False)
    assert result.sizes["step"] == STEPS
    assert js.project([W], [W[0]], [[W[0]]]).sizes["step"] == STEPS
    both = [W, W + 1]  # could be two checkpoints of one array, or five of two: as ever the former
    equal(principal([W, W + 1, W**2]), principal((W, W + 1, W**2)))
    assert js.project(both, W, W + 1).sizes["step"] == 2
    assert js.project(both, [W[0], W[0]], [[W[0], W[0]]]).sizes["step"] == STEPS


def test_slices_are_read_one_at_a_time():
    read = []

    class Disk:
        shape, dtype = (STEPS, 4, 3), np.dtype(float)

        def __getitem__(self, index):
            read.append(index)
            return np.asarray(W)[index]

    equal(principal({"w": Disk()}), principal([{"w": w} for w in W]))
    assert read == list(range(STEPS))


@pytest.mark.parametrize(
    ("checkpoints", "error", "match"),
    [
        (LIKE, ValueError, r"checkpoints is one dict whose leaves have no common leading axis \(\['b'\] \(3,\), "),
        ({"w": W, "b": jnp.float32(1)}, ValueError, r"no common leading axis \(\['b'\] \(\), \['w'\] \(5, 4, 3\)\)"),
        (
            {"w": W, "f": len},
            TypeError,
            r"checkpoints\['f'\] is builtin_function_or_method, but .* expected a sequence",
        ),
        ({}, TypeError, "checkpoints is dict without leaves, expected a sequence of params"),
        (None, TypeError, "checkpoints is NoneType without leaves, expected a sequence"),
        (3.0, TypeError, "checkpoints is float, expected a sequence of params"),
        (jnp.float32(1), ValueError, "whose leaves have no common leading axis"),
        (dict(enumerate(PATH)), ValueError, r"no common leading axis .* Of a dict of checkpoints pass `list\("),
        (
            {0: {"w": W[0]}, 10: {"w": W[1]}},
            ValueError,
            r"a dict of 2 integers .* pass `list\(checkpoints.values\(\)\)`",
        ),
        ([W, B], ValueError, r"checkpoints\[1\] has leaves of the shapes \[\(5, 3\)\].*lax.scan has stacked 5 times"),
        ([(W, B), (W, B[:, :1])], ValueError, r"checkpoints\[1\] has leaves .* in range\(5\)\]`"),
        ({"w": W[:0]}, ValueError, "checkpoints has 0 of them"),
    ],
)
def test_what_is_no_path(checkpoints, error, match):
    with pytest.raises(error, match=match):
        js.pca_directions(checkpoints)


def test_a_dict_of_integers_that_is_known_to_be_stacked():
    stacked = {0: {"w": W}, 1: {"w": W + 1}}
    like = jax.tree.map(lambda x: x[0], stacked)
    assert js.project(stacked, like, like).sizes["step"] == STEPS


# ---- what is made or read again and again


def test_iterators_are_enough_where_a_path_is_read_once():
    equal(principal(p for p in PATH), principal(PATH))
    directions = js.random_directions(0, LIKE)
    result, expected = (js.project(path, LIKE, directions) for path in (iter(PATH), PATH))
    np.testing.assert_array_equal(result.coordinates, expected.coordinates)


@pytest.mark.parametrize(
    "make", [lambda: (p for p in PATH), lambda: PATH, lambda: {"w": W, "b": B}], ids=["iterator", "list", "stacked"]
)
def test_a_function_that_makes_them(make):
    if isinstance(make(), dict):
        with pytest.raises(TypeError, match="checkpoints is a function that gave dict, expected an iterator of params"):
            js.pca_directions(make)
        return
    equal(principal(make), principal(PATH))
    equal(numbers(make), numbers(PATH))


def test_an_iterable_without_a_length_is_read_in_passes():
    read = []

    class Loader:
        def __iter__(self):
            for i, params in enumerate(PATH):
                read.append(i)
                yield params

    equal(principal(Loader()), principal(PATH))
    assert read == list(range(STEPS))
    read.clear()
    result, expected = (js.trajectory(p, loss, DATA, points=3, progress=False) for p in (Loader(), PATH))
    np.testing.assert_array_equal(result.loss, expected.loss)
    np.testing.assert_array_equal(result.true_loss, expected.true_loss)
    # The last one, and whether a second pass is possible; the directions; the coordinates with the losses.
    assert read == [*range(STEPS), 0, *range(STEPS), *range(STEPS)]


@pytest.mark.parametrize(
    ("run", "error", "match"),
    [
        (
            lambda: iter(PATH),
            TypeError,
            "run is a list_iterator, which can be read only once.*function that makes a new",
        ),
        (lambda: (p for p in PATH), TypeError, "run is a generator, which can be read only once"),
        (
            lambda: (lambda once: lambda: once)(iter(PATH)),
            ValueError,
            "run gives 5 params in the first pass and none in the second",
        ),
        (lambda: lambda: 3, TypeError, "run is a function that gave int, expected an iterator of params"),
        (lambda: lambda: [], ValueError, "checkpoints is empty"),
        (lambda: LIKE, ValueError, "run is one dict whose leaves have no common leading axis"),
    ],
)
def test_what_cannot_be_read_again(run, error, match):
    with pytest.raises(error, match=match):
        js.trajectory(run(), loss, DATA)


def test_lazy_sequences_are_sequences():
    from jaxscape.trajectories._checkpoints import as_path

    for path in (as_path({"w": W, "b": B}), as_path(lambda: iter(PATH))):
        assert len(path) == STEPS
        assert as_path(path) is path
        for index in (0, 2, -1, -STEPS):
            equal(jax.tree.leaves(path[index]), jax.tree.leaves(PATH[index]))
        for part in (slice(1, 3), slice(None, None, -2)):
            equal(jax.tree.leaves(path[part]), jax.tree.leaves(PATH[part]))
        with pytest.raises(IndexError):
            path[STEPS]


# ---- snapshots of a live module


def snapshots(take):
    net = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(net, optax.sgd(0.1), wrt=nnx.Param)
    taken = []
    for _ in range(4):
        taken.append(take(net))
        optimizer.update(net, nnx.grad(lambda n: (n(DATA) ** 2).mean())(net))
    return taken


@pytest.mark.parametrize("take", [nnx.state, lambda net: net], ids=["state", "module"])
@pytest.mark.parametrize("call", slow_but(["trajectory"], ["pca_directions", "project", "trajectory"]))
def test_snapshots_that_alias_a_live_module(take, call):
    taken = snapshots(take)
    like = jax.tree.map(jnp.copy, taken[0])
    calls = {
        "pca_directions": lambda: js.pca_directions(taken),
        "project": lambda: js.project(taken, like, js.random_directions(0, like)),
        "trajectory": lambda: js.trajectory(taken, loss, DATA),
    }
    with pytest.raises(ValueError, match=r"all 4 checkpoints are equal, since they hold the same arrays.*jnp\.copy"):
        calls[call]()


def test_copies_of_a_live_module_are_a_path():
    taken = snapshots(lambda net: jax.tree.map(jnp.copy, nnx.state(net)))
    plain = [nnx.to_pure_dict(state) for state in taken]
    equal(principal(taken), principal(plain))
    equal(numbers(taken, taken[-1]), numbers(plain, plain[-1]))


# ---- folders of orbax checkpoints


OPTIMIZER = optax.adam(1e-3)


def train_state(params, step):
    return {"params": params, "opt_state": OPTIMIZER.init(params), "step": step}


def managed(folder, save, **options):
    with ocp.CheckpointManager(folder, options=ocp.CheckpointManagerOptions(**options)) as manager:
        for i, params in enumerate(PATH):
            manager.save(10 * i, args=save(params, 10 * i))
    return folder


def bare(folder, save=lambda params, step: params, prefix=""):
    with ocp.StandardCheckpointer() as checkpointer:
        for i, params in enumerate(PATH):
            checkpointer.save(folder / f"{prefix}{10 * i}", save(params, 10 * i))
    return folder


def composite(**items):
    return ocp.args.Composite(**{name: ocp.args.StandardSave(tree) for name, tree in items.items()})


@pytest.mark.parametrize(
    "save",
    [
        lambda folder: managed(folder, lambda p, _: ocp.args.StandardSave(p)),
        slow_unless(
            False,
            lambda folder: managed(folder, lambda p, i: ocp.args.PyTreeSave(train_state(p, i)), step_prefix="ckpt"),
        ),
        slow_unless(False, lambda folder: managed(folder, lambda p, i: composite(params=p, rest=train_state(p, i)))),
        slow_unless(False, lambda folder: managed(folder, lambda p, i: composite(state=train_state(p, i), other=p))),
        bare,
        slow_unless(False, lambda folder: bare(folder, prefix="epoch")),
        lambda folder: bare(folder, train_state),
    ],
    ids=["default", "train state", "item params", "item state", "numbers", "prefix", "numbered train states"],
)
def test_a_folder_of_orbax_checkpoints(tmp_path, save):
    folder = save(tmp_path / "run")
    (folder / "40.orbax-checkpoint-tmp-7").mkdir()  # a step that orbax was writing when it was stopped
    equal(principal(folder), principal(PATH))
    equal(principal(str(folder)), principal(PATH))
    equal(projected(folder), projected(PATH))


def test_the_sequence_of_a_folder(tmp_path):
    folder = bare(tmp_path / "run", prefix="ckpt_")
    path = js.checkpoints(folder, like=LIKE)
    assert len(path) == STEPS
    assert path.steps == tuple(sorted(path.steps))
    equal([np.asarray(x) for x in jax.tree.leaves(path[-1])], [np.asarray(x) for x in jax.tree.leaves(PATH[-1])])
    equal(principal(path), principal(PATH))
    assert repr(path) == f"<{STEPS} checkpoints, steps {path.steps[0]} to {path.steps[-1]}>"
    with pytest.raises(FileNotFoundError, match="folder is '.*missing', but there is no such folder"):
        js.checkpoints(tmp_path / "missing")
    with pytest.raises(TypeError, match="folder is 3, expected the path of a folder"):
        js.checkpoints(3)


def test_a_folder_has_the_structure_of_the_origin(tmp_path):
    states = [nnx.State({"w": nnx.Param(p["w"]), "b": nnx.Param(p["b"])}) for p in PATH]
    with ocp.StandardCheckpointer() as checkpointer:
        for i, state in enumerate(states):
            checkpointer.save(tmp_path / "states" / str(i), state)

    def state_loss(state, x):
        return (x @ state["w"][...] + state["b"][...]).sum(-1) ** 2

    folder = tmp_path / "states"
    equal(numbers(folder, states[-1], state_loss), numbers(states, states[-1], state_loss))
    whole = [{"params": p, "batch_stats": {"m": p["b"]}} for p in PATH]
    folder = bare(tmp_path / "variables", lambda p, _: {"params": p, "batch_stats": {"m": p["b"]}})
    equal(
        numbers(folder, whole[0], lambda v, x: loss(v["params"], x)),
        numbers(whole, whole[0], lambda v, x: loss(v["params"], x)),
    )
    equal(projected(folder), projected(PATH))
    with pytest.raises(ValueError, match=r"checkpoints\[0\] has no leaf \['c'\]"):
        js.project(folder, LIKE | {"c": jnp.ones(2)}, LIKE | {"c": jnp.ones(2)})


def test_checkpoints_of_a_folder_are_read_one_at_a_time(tmp_path, monkeypatch):
    folder, read = bare(tmp_path / "run", train_state), []
    restore = ocp.PyTreeCheckpointHandler.restore

    def counted(handler, directory, **options):
        read.append(directory.name)
        restored = restore(handler, directory, **options)
        assert list(restored) == ["params"]  # the state of the optimizer stays on disk
        return restored

    monkeypatch.setattr(ocp.PyTreeCheckpointHandler, "restore", counted)
    js.pca_directions(folder)
    assert read == ["0", "10", "20", "30", "40"]


def test_bfloat16_comes_back_as_it_was_saved(tmp_path):
    path = [jax.tree.map(lambda x: x.astype(jnp.bfloat16), p) for p in PATH]
    with ocp.StandardCheckpointer() as checkpointer:
        for i, params in enumerate(path):
            checkpointer.save(tmp_path / "run" / str(i), params)
    equal(principal(tmp_path / "run"), principal(path))


def run_of_train(folder):
    (folder / "run").mkdir()
    (folder / "run" / "config.json").write_text(json.dumps({"arch": "", "noshort": 0, "dataset": "", "seed": 0}))
    bare(folder / "run" / "steps")
    return folder / "run"


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda f: f / "none", FileNotFoundError, "checkpoints is '.*none', but there is no such folder"),
        (lambda f: f, ValueError, "the folder .*, which has no orbax checkpoints; expected folders of .* has: nothing"),
        (lambda f: bare(f / "run") / "10", ValueError, "is .*/10, one checkpoint; expected a folder of several"),
        (lambda f: bare(bare(f / "run"), prefix="best_"), ValueError, r"steps have the prefixes \['', 'best_'\]"),
        (
            lambda f: bare(f / "run", lambda p, i: {"weights": p, "step": i}),
            TypeError,
            r"the leaf \['step'\] of int.* in .*/40, but every leaf.*'params'.*\['step', 'weights'\].*restore",
        ),
        (
            lambda f: managed(f / "run", lambda p, i: composite(model=p, optimizer=p)),
            ValueError,
            r"the step .*/0 with \['model', 'optimizer'\], expected .* items params, state, default",
        ),
        (
            lambda f: managed(f / "run", lambda p, i: ocp.args.Composite(meta=ocp.args.JsonSave({"step": i}))),
            ValueError,
            r"the step .*/0 with .*'meta'.*, expected a pytree saved by orbax",
        ),
        (lambda f: run_of_train(f), ValueError, r"of a run of train.py; pass js.load_run\('.*/run'\)"),
        (lambda f: run_of_train(f) / "steps", ValueError, r"of a run of train.py; pass js.load_run\('.*/run'\)"),
    ],
    ids=["missing", "empty", "one", "prefixes", "step", "items", "json", "run", "steps of a run"],
)
def test_folders_that_are_no_path(tmp_path, make, error, match):
    with pytest.raises(error, match=match):
        js.pca_directions(make(tmp_path))


def test_without_orbax(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "orbax.checkpoint", None)
    with pytest.raises(ImportError, match=r"checkpoints is the folder .*pip install orbax-checkpoint"):
        js.pca_directions(tmp_path)
