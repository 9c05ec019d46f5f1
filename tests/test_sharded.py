"""Params that are cut over devices: every call gives what it gives for whole params, and nothing is put together."""

import contextlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxscape as js
from jaxscape import engine, shards, trees
from jaxscape.curvature import _product
from jaxscape.objective import Objective, Placement
from tests.problems import launch, slow_but
from tests.sharding import MESHES, cut, loss_fn, mesh, problem, specs, tiny, tiny_logits, tiny_loss

PARAMS, LOSS, DATA = problem()
OTHER = jax.tree.map(lambda x: 1.1 * x + 0.05, PARAMS)
LINE = js.Grid.line(-1, 1, 3)
PLANE = js.Grid.plane((-1, 1, 3), (0, 1, 2))
VECTOR = js.random_directions(7, PARAMS, num=1, norm=None, ignore=None)[0]
ONE = pytest.mark.parametrize("name", slow_but(("points, fsdp",), MESHES))
ALL = pytest.mark.parametrize("name", MESHES)


def same(a, b, **tolerance):
    tolerance = tolerance or {"rtol": 1e-12, "atol": 1e-14}
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    for x, y in pairs:
        np.testing.assert_allclose(np.asarray(x), np.asarray(y), **tolerance)


def same_results(a, b):
    for name in b.data_vars:
        np.testing.assert_allclose(a[name], b[name], rtol=1e-12, atol=1e-14, err_msg=name)


def is_cut_like(tree, params, leading=()):
    """Whether each leaf is cut as that of params, behind leading axes."""
    for x, like in zip(jax.tree.leaves(tree), jax.tree.leaves(params), strict=True):
        wanted = NamedSharding(like.sharding.mesh, P(*leading, *like.sharding.spec))
        assert x.sharding.is_equivalent_to(wanted, x.ndim), (x.sharding, wanted)


def with_constraints(form):
    """The loss with sharding constraints inside."""

    def constrained(params, batch):
        def kernel(k):
            if form == "named":
                return jax.lax.with_sharding_constraint(k, NamedSharding(mesh("fsdp"), P(None, "fsdp")))
            if form == "in a loop":
                body = lambda c, _: (jax.lax.with_sharding_constraint(1.0 * c, P(None, "fsdp")), None)  # noqa: E731
                return jax.lax.scan(body, k, None, length=2)[0]
            return jax.lax.with_sharding_constraint(k, P(P.UNCONSTRAINED, "fsdp"))

        return loss_fn({**params, "in": {**params["in"], "kernel": kernel(params["in"]["kernel"])}}, batch)

    return constrained


# Surfaces


@ONE
def test_a_surface(name):
    params, whole = cut(PARAMS, mesh(name)), js.surface(PARAMS, LOSS, DATA, grid=PLANE, progress=False)
    directions = js.random_directions(0, params)
    is_cut_like(directions.basis, params, (None,))
    result = js.surface(params, LOSS, DATA, grid=PLANE, progress=False)
    same_results(result, whole)
    assert result.attrs["num_devices"] == mesh(name).size
    same_results(js.surface(params, LOSS, DATA, directions=directions, grid=PLANE, progress=False), whole)


@ONE
def test_float32(name):
    params, loss, data = problem(jnp.float32)
    whole = js.surface(params, loss, data, grid=LINE, directions=[OTHER], progress=False)
    result = js.surface(cut(params, mesh(name)), loss, data, grid=LINE, directions=[OTHER], progress=False)
    np.testing.assert_allclose(result.loss, whole.loss, rtol=1e-6)


@ONE
def test_an_interpolation(name):
    params, other = cut(PARAMS, mesh(name)), cut(OTHER, mesh(name))
    whole = js.interpolate(PARAMS, OTHER, LOSS, DATA, grid=LINE, progress=False)
    for end in (other, OTHER):
        same_results(js.interpolate(params, end, LOSS, DATA, grid=LINE, progress=False), whole)


LOSSES = {
    "scalar": lambda p, b: loss_fn(p, b)["loss"].mean(),
    "weighted": lambda p, b: {**loss_fn(p, b), "weight": b[1] + 1.0},
    "terms": {"a": loss_fn, "b": lambda p, b: loss_fn(p, b)["loss"].mean()},
}


@pytest.mark.parametrize("form", LOSSES)
def test_forms_of_the_loss(form):
    loss, data = LOSSES[form], {"a": DATA, "b": DATA} if form == "terms" else DATA
    options = {"grid": LINE, "directions": [OTHER], "progress": False, "batch_size": 6}  # no multiple of 4
    if form != "weighted":
        options["batch_size"] = 5
    whole = js.surface(PARAMS, loss, data, **options)
    same_results(js.surface(cut(PARAMS, mesh("fsdp")), loss, data, **options), whole)


@pytest.mark.check
def test_a_loss_that_is_no_mean_is_found_out():
    def batch_mean(params, batch):
        loss = loss_fn(params, batch)["loss"]
        return loss * loss.mean()

    params = cut(PARAMS, mesh("fsdp"))
    with pytest.raises(ValueError, match="loss_fn is no mean over examples"):
        js.surface(params, batch_mean, DATA, grid=LINE, directions=[OTHER], progress=False)

    def sorted_twice(params, batch):  # a mean, but no proof sees it
        loss = loss_fn(params, batch)["loss"]
        return jnp.sort(loss)[jnp.argsort(jnp.argsort(loss))]

    whole = js.surface(PARAMS, loss_fn, DATA, grid=LINE, directions=[OTHER], progress=False)
    result = js.surface(params, sorted_twice, DATA, grid=LINE, directions=[OTHER], progress=False)
    np.testing.assert_allclose(result.loss, whole.loss, rtol=1e-12)


@pytest.mark.parametrize("form", ["by names", "named", "in a loop"])
@pytest.mark.parametrize("ambient", [None, AxisType.Auto, AxisType.Explicit], ids=["no mesh", "auto", "explicit"])
def test_constraints_and_ambient_meshes(form, ambient):
    options = {"grid": LINE, "directions": [OTHER], "progress": False}
    whole = js.surface(PARAMS, LOSS, DATA, **options)
    own = mesh("fsdp", ambient or AxisType.Auto)
    with contextlib.nullcontext() if ambient is None else jax.set_mesh(own):
        result = js.surface(cut(PARAMS, own), with_constraints(form), DATA, **options)
    same_results(result, whole)


def test_a_constraint_reaches_the_program_and_not_the_fingerprint():
    params = cut(PARAMS, mesh("fsdp"))
    plain = Objective.of(loss_fn, params, DATA, check=False).terms[0]
    (term,) = Objective.of(with_constraints("by names"), params, DATA, check=False).terms
    assert term.fingerprints == plain.fingerprints
    assert term.traced(20).computation != plain.traced(20).computation  # another program
    with jax.set_mesh(mesh("fsdp")):
        text = str(term.traced(20).computation.rewritten())
    assert re.search(r"sharding_constraint\[[^]]*'fsdp'", text)
    assert "sharding_constraint" not in str(term.traced(20).computation.rewritten())
    (whole,) = Objective.of(with_constraints("named"), PARAMS, DATA, check=False).terms
    assert "sharding_constraint" not in str(whole.traced(20).computation.jaxpr)


def test_explicit_shardings_inside_the_loss():
    weights = {"a": jnp.asarray(np.random.default_rng(0).normal(size=(8, 16))), "b": jnp.ones((16, 8)) / 4}
    x = np.random.default_rng(1).normal(size=(12, 8))

    def loss(p, b):
        h = jnp.tanh(b @ jax.sharding.reshard(p["a"], P(None, None)))
        h = jax.sharding.reshard(h, P(None, "fsdp"))
        return (jnp.einsum("ni,ij->nj", h, p["b"], out_sharding=P(None, None)) ** 2).sum(-1)

    whole = js.surface(weights, lambda p, b: ((jnp.tanh(b @ p["a"]) @ p["b"]) ** 2).sum(-1), x, grid=LINE,
                       directions=[weights], progress=False)  # fmt: skip
    own = mesh("fsdp", AxisType.Explicit)
    with jax.set_mesh(own):
        params = {name: jax.device_put(w, NamedSharding(own, P("fsdp", None))) for name, w in weights.items()}
        result = js.surface(params, loss, x, grid=LINE, directions=[weights], progress=False)
    same_results(result, whole)


def test_data_that_are_cut_a_stream_a_tolerance_and_a_store(tmp_path):
    params, options = cut(PARAMS, mesh("fsdp")), {"grid": LINE, "directions": [OTHER], "progress": False}
    whole = js.surface(PARAMS, LOSS, DATA, **options)
    in_parts = jax.tree.map(lambda x: jax.device_put(x, NamedSharding(mesh("fsdp"), P("fsdp"))), DATA)
    stream = js.Stream([tuple(x[i : i + 7] for x in DATA) for i in range(0, 20, 7)])
    for data, more in ((in_parts, {}), (stream, {}), (DATA, {"store": tmp_path / "s.zarr"})):
        same_results(js.surface(params, LOSS, data, **options, **more), whole)
    other = cut(PARAMS, mesh("tensor"))  # cut in another way: the same fingerprint
    same_results(js.surface(other, LOSS, DATA, store=tmp_path / "s.zarr", **options), whole)
    rough = js.surface(params, LOSS, DATA, rtol=1e-9, **options)
    np.testing.assert_allclose(rough.loss, whole.loss, rtol=1e-9)


def test_a_mesh_with_points_beside_the_axes_of_params():
    params = cut(PARAMS, Mesh(np.array(jax.devices()[:2]), ("fsdp",)))
    both = Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("points", "fsdp"))
    options = {"grid": LINE, "directions": [OTHER], "progress": False}
    result = js.surface(params, LOSS, DATA, mesh=both, **options)
    same_results(result, js.surface(PARAMS, LOSS, DATA, **options))
    assert result.attrs["num_devices"] == 4


@pytest.mark.parametrize("rewrites", [True, False], ids=["as on a CPU", "as on a TPU"])
def test_constants_in_the_loss_beside_points(rewrites, monkeypatch):
    if not rewrites:
        monkeypatch.setattr("jaxscape.convolution._transform._RULES", {})

    def loss(params, x):
        y = x @ params["a"]
        kept = jax.random.bernoulli(jax.random.key(0), 0.5, y.shape[1:])
        return jnp.where((y > 0) & kept, y + jax.nn.one_hot(y.argmax(-1), 8), 0.0).sum(-1)

    params, x = {"a": np.random.default_rng(0).normal(size=(4, 8))}, np.eye(6, 4)
    own = {"a": jax.device_put(params["a"], NamedSharding(mesh("points, fsdp"), P("fsdp")))}
    options = {"directions": [params], "grid": LINE, "progress": False}
    same_results(js.surface(own, loss, x, **options), js.surface(params, loss, x, **options))


def test_points_may_be_the_name_of_an_axis_of_the_model():
    params, x = {"a": np.random.default_rng(0).normal(size=(4, 8))}, np.eye(6, 4)
    loss = lambda p, b: jnp.tanh(b @ p["a"]).sum(-1)  # noqa: E731
    options = {"directions": [params], "grid": LINE, "progress": False}
    whole = js.surface(params, loss, x, **options)
    for spec in (P("points"), P("points", "fsdp")):
        own = {"a": jax.device_put(params["a"], NamedSharding(mesh("points, fsdp"), spec))}
        same_results(js.surface(own, loss, x, **options), whole)
        assert js.plane_hessian(own, loss, x, **options).sizes["alpha"] == 3


def test_a_path_whose_first_checkpoint_alone_is_whole():
    path = [PATH[0], *(cut(params, mesh("fsdp")) for params in PATH[1:])]
    directions, _ = js.pca_directions(path, num=1, progress=False)
    same(directions.basis, js.pca_directions(PATH, num=1, progress=False)[0].basis, atol=1e-12)


def test_no_device_holds_the_whole():
    params = cut(PARAMS, mesh("fsdp"))
    (term,) = Objective.of(LOSS, params, DATA, check=False).terms
    directions = js.random_directions(0, params)
    program = engine.Program(term, params, directions.basis, engine.Load(20))
    is_cut_like(program._operands[0], params)
    is_cut_like(program._operands[1], params, (None,))
    images = program._operands[3][0]
    assert images.sharding.spec == P(None, ("fsdp",))  # the examples of a batch, too
    assert Placement.of(params).parts_of_batch == 4


def test_wrong_meshes_and_loads():
    params = cut(PARAMS, mesh("fsdp"))
    options = {"grid": LINE, "directions": [OTHER], "progress": False}
    with pytest.raises(
        ValueError, match="mesh has the axes {'rows': 2, 'columns': 2}, but params are cut along 'fsdp'"
    ):
        js.surface(params, LOSS, DATA, mesh=mesh("tensor"), **options)
    with pytest.raises(ValueError, match="points_per_step is 4, but params are cut over devices"):
        js.surface(params, LOSS, DATA, points_per_step=4, **options)
    mixed = {**params, "out": cut(PARAMS, mesh("tensor"))["out"]}
    with pytest.raises(
        ValueError, match=r"params\['conv'\]\['bias'\] is cut over a mesh \('fsdp': 4\) .* expected one"
    ):
        js.surface(mixed, LOSS, DATA, **options)


# Curvature


TINY, TINY_LOSS, FEW_DATA = tiny()
TINY_VECTOR = js.random_directions(7, TINY, num=1, norm=None, ignore=None)[0]


def products(params):
    yield js.hvp(TINY_LOSS, params, FEW_DATA)
    yield js.hvp(TINY_LOSS, params, FEW_DATA, batch_size=7, linearize=False)
    yield js.hvp(lambda p, b: tiny_loss(p, b).mean(), params, FEW_DATA, batch_size=8, ignore="bias_norm")
    yield js.hvp(
        lambda p, b: {"loss": tiny_loss(p, b), "weight": b[1] + 1.0},
        params,
        js.Stream([tuple(x[i : i + 7] for x in FEW_DATA) for i in range(0, 20, 7)]),
    )
    yield js.ggn_product(tiny_logits, lambda y, b: (y**2).sum(-1), params, FEW_DATA)


@ONE
def test_products(name):  # five products of two sets of params compile: 4 s
    params = cut(TINY, mesh(name))
    for whole, product in zip(products(TINY), products(params), strict=True):
        image = product(TINY_VECTOR)
        same(image, whole(TINY_VECTOR))
        is_cut_like(image, params)
        assert repr(product) == repr(whole)


def test_both_ends_of_a_spectrum_with_a_restart():
    params = cut(TINY, mesh("tensor"))
    options = {"key": 1, "tol": 1e-4, "max_basis": 12, "progress": False}
    a, b = (js.hvp(TINY_LOSS, p, FEW_DATA).extreme_eigenvalues(**options) for p in (params, TINY))
    same((a.min_eigenvalue, a.max_eigenvalue), (b.min_eigenvalue, b.max_eigenvalue))
    assert (int(a.num_matvecs), bool(a.converged)) == (int(b.num_matvecs), bool(b.converged))
    is_cut_like(a.max_eigenvector, params)


@pytest.mark.slow  # every program of `linalg` with lists of leaves: 15 s for each mesh
@ALL
def test_spectra(name):
    params = cut(TINY, mesh(name))
    whole, operator = js.hvp(TINY_LOSS, TINY, FEW_DATA), js.hvp(TINY_LOSS, params, FEW_DATA)
    for options in ({"tol": 1e-9, "max_matvecs": 300}, {"tol": 1e-4, "max_basis": 12}):  # the second one restarts
        a, b = (h.extreme_eigenvalues(key=1, progress=False, **options) for h in (operator, whole))
        same((a.min_eigenvalue, a.max_eigenvalue), (b.min_eigenvalue, b.max_eigenvalue))
        assert (a.num_matvecs, a.converged) == (b.num_matvecs, b.converged)
    is_cut_like(a.max_eigenvector, params)
    for options in ({"num_matvecs": 9}, {"num_matvecs": 4, "method": "hutchinson"}):
        a, b = (h.trace(progress=False, **options) for h in (operator, whole))
        same(a, b, rtol=1e-10)
    a, b = (h.spectral_density(num_probes=2, num_steps=6, progress=False) for h in (operator, whole))
    np.testing.assert_allclose(a.density, b.density, rtol=1e-9, atol=1e-12)
    ends, expected = (
        js.lanczos(h, p, key=2, tol=1e-9, max_matvecs=300) for h, p in ((operator, params), (whole, TINY))
    )
    np.testing.assert_allclose(ends.max_eigenvalue, expected.max_eigenvalue, rtol=1e-10)
    v = np.linspace(-1, 1, whole.shape[0])
    np.testing.assert_allclose(operator.to_scipy().matvec(v), whole.to_scipy().matvec(v), rtol=1e-9, atol=1e-12)


@pytest.mark.slow
@ALL
def test_an_eigenvalue_map(name, tmp_path):  # a map of whole params and one of params that are cut: 5 s
    options = {"grid": js.Grid.line(0, 1, 2), "tol": 1e-6, "max_matvecs": 200, "progress": False}
    whole = js.eigenvalue_map(TINY, TINY_LOSS, FEW_DATA, directions=[TINY_VECTOR], **options)
    params = cut(TINY, mesh(name))
    for more in ({}, {"store": tmp_path / "map.zarr"}):
        result = js.eigenvalue_map(params, TINY_LOSS, FEW_DATA, directions=[TINY_VECTOR], **options, **more)
        for variable in ("min_eigenvalue", "max_eigenvalue", "plane_hessian", "num_matvecs"):
            np.testing.assert_allclose(result[variable], whole[variable], rtol=1e-10, err_msg=variable)
        assert result.attrs["num_devices"] == mesh(name).size


def test_a_loop_of_products_inside_jit():
    params = cut(TINY, mesh("fsdp"))
    operator = js.hvp(TINY_LOSS, params, FEW_DATA)
    vector = cut(TINY_VECTOR, mesh("fsdp"))
    twice = jax.jit(lambda v: operator(operator(v)))(vector)
    same(twice, operator(operator(vector)), rtol=1e-9, atol=1e-12)


@pytest.mark.slow
def test_linear_functions_are_kept_in_parts(monkeypatch):
    monkeypatch.setattr(_product.Product, "_keeps", lambda *_: True)
    product = js.hvp(TINY_LOSS, cut(TINY, mesh("fsdp")), FEW_DATA, batch_size=8)
    same(product(TINY_VECTOR), js.hvp(TINY_LOSS, TINY, FEW_DATA, batch_size=8)(TINY_VECTOR))


# Paths

RNG = np.random.default_rng(0)
PATH = [
    jax.tree.map(lambda x, i=i: x + 0.1 * i * jnp.sin(7 * x) + 0.02 * RNG.normal(size=x.shape), PARAMS)
    for i in range(5)
]


@ONE
@pytest.mark.parametrize("center", ["last", "mean"])
def test_principal_directions(name, center):
    path = [cut(params, mesh(name)) for params in PATH]
    for ignore in (None, "bias_norm"):
        whole, ratio = js.pca_directions(PATH, center=center, ignore=ignore, progress=False)
        directions, other = js.pca_directions(path, center=center, ignore=ignore, progress=False)
        same(directions.basis, whole.basis, atol=1e-12)
        np.testing.assert_allclose(other, ratio, rtol=1e-10, atol=1e-14)
        is_cut_like(directions.basis, path[0], (None,))


@pytest.mark.slow  # two trajectories and one of whole params: 7 s
def test_a_trajectory():
    steps = [jax.tree.map(lambda x, i=i: x + 0.1 * i * jnp.sin(7 * x), TINY) for i in range(4)]
    path = [cut(params, mesh("tensor")) for params in steps]
    directions = js.random_directions(0, steps[-1])
    whole = js.trajectory(steps, TINY_LOSS, FEW_DATA, directions=directions, points=3, progress=False)
    for own in (directions, js.random_directions(0, path[-1], lazy=True)):
        result = js.trajectory(path, TINY_LOSS, FEW_DATA, directions=own, points=3, progress=False)
        for variable in ("coordinates", "distance", "off_plane_distance", "true_loss", "in_plane_loss", "loss"):
            np.testing.assert_allclose(result[variable], whole[variable], rtol=1e-9, atol=1e-12, err_msg=variable)


def test_orbax_gives_each_device_its_part(tmp_path):
    ocp = pytest.importorskip("orbax.checkpoint")
    path = [cut(params, mesh("fsdp")) for params in PATH[:3]]
    with ocp.CheckpointManager(tmp_path / "run") as manager:
        for i, params in enumerate(path):
            manager.save(i, args=ocp.args.StandardSave({"params": params, "step": i}))
        manager.wait_until_finished()
    saved = js.checkpoints(tmp_path / "run", like=path[0])
    assert shards.specs_of(saved[1]) == shards.specs_of(path[1])
    directions, _ = js.pca_directions(saved, num=1, progress=False)
    same(directions.basis, js.pca_directions(PATH[:3], num=1, progress=False)[0].basis, atol=1e-12)


# Fingerprints


@pytest.mark.parametrize(
    "dtype", slow_but(("bfloat16", "float64"), ["float32", "bfloat16", "float64", "int32", "bool"])
)
def test_a_digest_is_that_of_the_contents_however_they_are_cut(dtype):
    rng = np.random.default_rng(0)
    whole = jnp.asarray(rng.normal(size=(8, 12, 4)) > 0 if dtype == "bool" else 9 * rng.normal(size=(8, 12, 4))).astype(
        dtype
    )
    ways = [
        ("fsdp", P("fsdp")),
        ("fsdp", P(None, "fsdp")),
        ("tensor", P("rows", "columns")),
        ("tensor", P(None, None, "rows")),
    ]
    place = lambda x, name, spec: jax.device_put(x, NamedSharding(mesh(name), spec))  # noqa: E731
    digests = {trees.array_digest(place(whole, *way)) for way in ways}
    assert len(digests) == 1
    for entry in ((0, 0, 0), (7, 11, 3), (3, 5, 1)):
        other = whole.at[entry].set(~whole[entry] if dtype == "bool" else whole[entry] + 1)
        assert trees.array_digest(place(other, *ways[0])) not in digests
    swapped = whole.at[0].set(whole[1]).at[1].set(whole[0])  # the same numbers in other places
    assert trees.array_digest(place(swapped, *ways[2])) not in digests


@pytest.mark.slow  # 7 seconds: it compiles anew
def test_a_digest_of_many_blocks_of_rows(monkeypatch):
    x = np.random.default_rng(0).normal(size=(24, 6))
    place = lambda: jax.device_put(x, NamedSharding(mesh("fsdp"), P("fsdp")))  # noqa: E731
    one = trees.array_digest(place())
    monkeypatch.setattr("jaxscape.shards._parts.ROWS", 24)  # 4 of the 6 rows of a device, the last block overlaps
    jax.clear_caches()
    assert trees.array_digest(place()) == one


# Several processes

WORKER = """
from tests.sharding import *
from tests.test_sharded import DATA, LINE, LOSS, OTHER, PARAMS, PATH, VECTOR
devices = np.array(jax.devices())
results = {}
for name, axes, shape in (("fsdp", ("fsdp",), (4,)), ("tensor", ("rows", "columns"), (2, 2)),
                          ("points", ("points", "fsdp"), (2, 2)), ("across", ("fsdp", "points"), (2, 2))):
    own = Mesh(devices.reshape(shape), axes)
    params = cut(PARAMS, own)
    directions = js.random_directions(0, params, num=1)
    lazy = js.random_directions(0, params, num=1, lazy=True)
    options = dict(grid=LINE, progress=False)
    results[f"{name} surface"] = js.surface(params, LOSS, DATA, directions=directions, **options).loss
    store = f"{out}/{name}.zarr"
    results[f"{name} lazy"] = js.surface(params, LOSS, DATA, directions=lazy, store=store, **options).loss
    results[f"{name} line"] = js.interpolate(params, cut(OTHER, own), LOSS, DATA, **options).loss
    operator = js.hvp(LOSS, params, DATA)
    whole = lambda tree: np.concatenate([np.ravel(x) for x in jax.tree.leaves(fetch(tree))])
    results[f"{name} product"] = whole(operator(cut(VECTOR, own)))
    results[f"{name} directions"] = whole(directions.basis)
    ends = operator.extreme_eigenvalues(tol=1e-9, max_matvecs=300, progress=False)
    results[f"{name} ends"] = np.array([ends.min_eigenvalue, ends.max_eigenvalue])
    ends = operator.extreme_eigenvalues(tol=1e-9, max_matvecs=300, max_basis=12, basis="host", progress=False)
    results[f"{name} host ends"] = np.array([ends.min_eigenvalue, ends.max_eigenvalue])
    results[f"{name} trace"] = np.array(operator.trace(num_matvecs=9, progress=False)[:2])
    path = [cut(p, own) for p in PATH]
    pca, ratio = js.pca_directions(path, progress=False)
    results[f"{name} pca"], results[f"{name} ratio"] = whole(pca.basis), ratio
    results[f"{name} project"] = js.project(path, path[-1], pca, progress=False).coordinates
    recorder = js.Recorder(path[0], folder=f"{out}/{name}-path")
    for p in path[1:]:
        recorder(p)
    recorder = js.Recorder(path[0], folder=f"{out}/{name}-path")
    results[f"{name} recorded"] = np.stack([whole(p) for p in recorder])
    results[f"{name} distance"] = recorder.dataset().distance
    if name in ("tensor", "points"):
        curvature = js.eigenvalue_map(params, LOSS, DATA, directions=directions, tol=1e-6, max_matvecs=200,
                                      store=f"{out}/{name}-map.zarr", **options)
        results[f"{name} map"] = curvature.max_eigenvalue
np.savez(f"{out}/{index}.npz", **results)
"""


@pytest.mark.slow  # two processes compile everything: 3 minutes
def test_two_processes_each_with_parts_of_params(tmp_path):
    processes = launch(2, tmp_path, "from jaxscape.objective import fetch\n" + WORKER)
    output = [process.communicate(timeout=900)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], output
    flat = lambda tree: np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])  # noqa: E731
    directions = js.random_directions(0, PARAMS, num=1)
    options = {"grid": LINE, "progress": False}
    operator = js.hvp(LOSS, PARAMS, DATA)
    ends = operator.extreme_eigenvalues(tol=1e-9, max_matvecs=300, progress=False)
    pca, ratio = js.pca_directions(PATH, progress=False)
    surface = js.surface(PARAMS, LOSS, DATA, directions=directions, **options).loss
    recorder = js.Recorder(PATH[0])
    for params in PATH[1:]:
        recorder(params)
    expected = {
        "surface": surface,
        "lazy": surface,
        "line": js.interpolate(PARAMS, OTHER, LOSS, DATA, **options).loss,
        "product": flat(operator(VECTOR)),
        "directions": flat(directions.basis),
        "ends": [ends.min_eigenvalue, ends.max_eigenvalue],
        "recorded": np.stack([flat(p) for p in recorder]),
        "distance": recorder.dataset().distance,
        "trace": operator.trace(num_matvecs=9, progress=False)[:2],
        "pca": flat(pca.basis),
        "ratio": ratio,
        "project": js.project(PATH, PATH[-1], pca, progress=False).coordinates,
        "map": js.eigenvalue_map(PARAMS, LOSS, DATA, directions=directions, tol=1e-6, max_matvecs=200, **options)[
            "max_eigenvalue"
        ],
    }
    for index in range(2):
        results = np.load(tmp_path / f"{index}.npz")
        for key in results.files:
            name = key.rpartition(" ")[2]
            np.testing.assert_allclose(results[key], expected[name], rtol=1e-9, atol=1e-12, err_msg=key)
            if name == "directions":
                np.testing.assert_array_equal(results[key], expected[name])


def test_a_stream_for_params_of_several_processes_is_refused(monkeypatch):
    params = cut(PARAMS, mesh("fsdp"))
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(TypeError, match="data is a js.Stream, but params are cut over devices of several processes"):
        Objective.of(LOSS, params, js.Stream([DATA]))


def test_specs_of_the_tests_cut_each_leaf_along_its_largest_axis():
    assert specs(PARAMS, mesh("fsdp"))["in"]["kernel"] == P(None, "fsdp")
    assert specs(PARAMS, mesh("tensor"))["query"]["kernel"] == P("rows", None, "columns")
