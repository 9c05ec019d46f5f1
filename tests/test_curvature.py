"""Products, eigenvalues, trace and density of Hessians against `jax.hessian` and NumPy, and laws they obey."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse.linalg
from flax import nnx
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh

import jaxscape as js
from jaxscape import runs
from jaxscape.curvature import _batches, _product
from jaxscape.curvature._batches import choose_batch_size
from jaxscape.curvature._forms import Source
from jaxscape.objective import Objective
from jaxscape.subspace import Subspace
from tests.problems import classification_data, cross_entropy, mlp_apply, mlp_loss, mlp_params, slow_but, slow_unless


def squared_error(outputs, labels):
    return jnp.mean((jax.nn.softmax(outputs) - jax.nn.one_hot(labels, outputs.shape[-1])) ** 2, axis=-1)


def normalized_mlp(params, batch):
    """With a batch norm in evaluation mode."""
    x = batch[0] @ params["dense"]["kernel"]
    x = (x - params["stats"]["mean"]) / jnp.sqrt(0.5 + params["stats"]["var"] ** 2)
    return jnp.tanh(x * params["norm"]["scale"] + params["norm"]["bias"]) @ params["head"]


def small_convolutions(params, batch):
    x = batch[0].reshape(-1, 4, 4, 1)
    for kernel in params["kernels"]:
        x = jax.nn.softplus(
            jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        )
    return x.mean((1, 2)) @ params["head"]


@functools.cache
def problem(name, loss=cross_entropy, examples=23):
    rng = np.random.default_rng(0)

    def draw(*shape):
        return jnp.asarray(0.5 * rng.normal(size=shape))

    if name == "mlp":
        model, features, params = lambda p, b: mlp_apply(p, b[0]), 5, mlp_params()
    elif name == "batch norm":
        model, features = normalized_mlp, 5
        params = {
            "dense": {"kernel": draw(5, 6)},
            "norm": {"scale": 1 + draw(6), "bias": draw(6)},
            "stats": {"mean": draw(6), "var": draw(6)},
            "head": draw(6, 4),
        }
    else:
        model, features = small_convolutions, 16
        params = {"kernels": [draw(3, 3, 1, 2), draw(3, 3, 2, 3)], "head": draw(3, 4)}
    data = classification_data(examples, features)
    return model, (lambda p, b: loss(model(p, b), b[1])), params, data


def dense(loss_fn, params, data):
    """The Hessian of the mean loss over all data at once, and its eigenvalues and eigenvectors."""
    flat, unravel = ravel_pytree(params)
    matrix = np.asarray(jax.jit(jax.hessian(lambda f: jnp.mean(loss_fn(unravel(f), data))))(flat))
    return matrix, *np.linalg.eigh(matrix)


@functools.cache
def dense_of(name, loss=cross_entropy):
    """`dense` of a problem, computed once for all tests."""
    return dense(*problem(name, loss)[1:])


def mesh(num):
    return Mesh(np.array(jax.devices()[:num]), ("data",))


def apply(product, params, seed=0):
    flat, unravel = ravel_pytree(params)
    v = jax.random.normal(jax.random.key(seed), flat.shape)
    return np.asarray(v), np.asarray(ravel_pytree(product(unravel(v)))[0])


NAMES = ("mlp", "batch norm", "convolutions")
QUICK = ((squared_error, False, "mlp"), (cross_entropy, True, "convolutions"))


@pytest.mark.parametrize(
    ("name", "loss", "linearize"),
    [
        slow_unless((loss, linearize, name) in QUICK, name, loss, linearize)
        for name in NAMES
        for loss in (cross_entropy, squared_error)
        for linearize in (True, False)
    ],
)
def test_products_equal_the_dense_hessian(name, loss, linearize):
    _, loss_fn, params, data = problem(name, loss)
    matrix = dense_of(name, loss)[0]
    v, image = apply(js.hvp(loss_fn, params, data, batch_size=4, linearize=linearize), params)  # 23 examples: ragged
    np.testing.assert_allclose(image, matrix @ v, rtol=1e-10, atol=1e-10 * np.linalg.norm(matrix @ v))


@pytest.mark.parametrize("batch_size", slow_but([5, "auto"], [1, 5, 23, "auto"]))
@pytest.mark.parametrize("devices", slow_but([3], [1, 3, 4]))
def test_products_do_not_depend_on_batches_and_devices(batch_size, devices):
    _, loss_fn, params, data = problem("mlp")
    expected = apply(js.hvp(loss_fn, params, data, batch_size=23, mesh=mesh(1)), params)[1]
    result = apply(js.hvp(loss_fn, params, data, batch_size=batch_size, mesh=mesh(devices)), params)[1]
    np.testing.assert_allclose(result, expected, rtol=1e-12, atol=1e-14)


def test_products_are_symmetric_and_linear():
    _, loss_fn, params, data = problem("convolutions")
    product = js.hvp(loss_fn, params, data)
    (a, ha), (b, hb) = (apply(product, params, seed) for seed in (1, 2))
    np.testing.assert_allclose(a @ hb, b @ ha, rtol=1e-12)
    flat, unravel = ravel_pytree(params)
    both = ravel_pytree(product(unravel(jnp.asarray(2 * a - b))))[0]
    np.testing.assert_allclose(both, 2 * ha - hb, atol=1e-12)


@pytest.mark.parametrize("devices", slow_but([3], [1, 3]))
def test_a_batch_mean_is_weighted_by_its_examples(devices):
    _, loss_fn, params, data = problem("mlp")

    def mean(params, batch):
        return loss_fn(params, batch).mean()

    expected = apply(js.hvp(loss_fn, params, data), params)[1]
    for batch_size in (4, 23):
        result = apply(js.hvp(mean, params, data, batch_size=batch_size, mesh=mesh(devices)), params)[1]
        np.testing.assert_allclose(result, expected, rtol=1e-11, atol=1e-13)


def test_products_inside_a_transform():
    _, loss_fn, params, data = problem("mlp")
    product = js.hvp(loss_fn, params, data, batch_size=2, mesh=mesh(2))
    v, expected = apply(product, params)
    np.testing.assert_allclose(apply(jax.jit(product), params)[1], expected, rtol=1e-11, atol=1e-13)

    @jax.jit
    def anywhere(p, v):
        return js.hvp(loss_fn, p, data, batch_size=2, mesh=mesh(2))(v)

    result = apply(functools.partial(anywhere, params), params)[1]
    np.testing.assert_allclose(result, expected, rtol=1e-11, atol=1e-13)


def test_a_dict_with_other_metrics_and_padding_with_nan():
    params, data = mlp_params(), classification_data()
    expected = dense(lambda p, b: mlp_loss(p, b)["loss"], params, data)[0]
    v, image = apply(js.hvp(mlp_loss, params, data, batch_size=3), params)
    np.testing.assert_allclose(image, expected @ v, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", slow_but(["mlp", "convolutions"], NAMES))
def test_gauss_newton(name):
    model, loss_fn, params, data = problem(name)
    flat, unravel = ravel_pytree(params)
    jacobian = jax.jit(jax.jacobian(lambda f: model(unravel(f), data)))(flat)  # examples, classes, n
    inner = jax.jit(jax.vmap(jax.hessian(lambda y, t: cross_entropy(y[None], t[None])[0])))(
        model(params, data), data[1]
    )
    expected = np.einsum("eci,ecd,edj->ij", jacobian, inner, jacobian) / len(data[1])
    product = js.ggn_product(model, lambda y, b: cross_entropy(y, b[1]), params, data, batch_size=4)
    v, image = apply(product, params)
    np.testing.assert_allclose(image, expected @ v, rtol=1e-10, atol=1e-12)
    assert v @ image >= 0


def test_gauss_newton_is_the_hessian_where_the_model_is_linear():
    data = classification_data()
    params = {"w": jnp.asarray(np.random.default_rng(0).normal(size=(5, 4)))}

    def model(params, batch):
        return batch[0] @ params["w"]

    def loss(outputs, batch):
        return cross_entropy(outputs, batch[1])

    ggn = js.ggn_product(model, loss, params, data)
    hessian = js.hvp(lambda p, b: loss(model(p, b), b), params, data)
    np.testing.assert_allclose(apply(ggn, params)[1], apply(hessian, params)[1], rtol=1e-11, atol=1e-14)


def test_half_precision_params_have_float32_products():
    _, loss_fn, params, data = problem("mlp")
    small = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    image = js.hvp(loss_fn, small, data)(small)
    assert {leaf.dtype for leaf in jax.tree.leaves(image)} == {jnp.dtype("float32")}


@pytest.mark.parametrize(
    ("name", "free", "keeps"), [("convolutions", 1e9, True), ("convolutions", 1e3, False), ("mlp", 1e9, False)]
)
def test_linear_functions_are_kept_where_memory_allows(monkeypatch, name, free, keeps):
    _, loss_fn, params, data = problem(name)
    decisions = []
    choose = _product.Product._keeps
    monkeypatch.setattr(_product, "free_bytes", lambda _: free)
    monkeypatch.setattr(_product.Product, "_keeps", lambda self, p: decisions.append(choose(self, p)) or decisions[-1])
    js.hvp(loss_fn, params, data, mesh=mesh(1), batch_size=23 if name == "convolutions" else 1)
    assert decisions == [keeps]


def test_batches_of_an_accelerator_fill_a_share_of_its_memory(monkeypatch):
    _, loss_fn, params, _ = problem("mlp")
    (term,) = Objective.of(loss_fn, params, classification_data(examples=5000), check=False).terms
    source, subspace = Source(term), Subspace.of(params, None)
    assert choose_batch_size(source, subspace) == 512  # on a CPU
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert choose_batch_size(source, subspace) == 5000  # they fit, all of them
    sizes = []
    for memory in (2**20, 2**18, 8):
        monkeypatch.setattr(_batches, "_memory", lambda device, memory=memory: memory)
        sizes.append(choose_batch_size(source, subspace))
    assert 1 < sizes[0] == 4 * sizes[1] < 5000
    assert sizes[2] == 1


@pytest.mark.parametrize(
    ("name", "loss"),
    [
        slow_unless((loss is cross_entropy) == (name == "convolutions") and name != "batch norm", name, loss)
        for name in NAMES
        for loss in (cross_entropy, squared_error)
    ],
)
def test_extreme_eigenvalues_equal_the_dense_ones(name, loss):
    _, loss_fn, params, data = problem(name, loss)
    _, values, vectors = dense_of(name, loss)
    result = js.extreme_eigenvalues(params, loss_fn, data, tol=1e-9, batch_size=4, max_matvecs=400, progress=False)
    assert result.converged
    np.testing.assert_allclose(result.min_eigenvalue, values[0], rtol=1e-8)
    np.testing.assert_allclose(result.max_eigenvalue, values[-1], rtol=1e-8)
    for vector, expected in ((result.min_eigenvector, vectors[:, 0]), (result.max_eigenvector, vectors[:, -1])):
        vector = ravel_pytree(vector)[0]
        np.testing.assert_allclose(vector * np.sign(vector @ expected), expected, atol=1e-6)


@pytest.mark.parametrize("which", slow_but(["LM"], ["LA", "SA", "LM", "BE"]))
def test_top_eigenpairs_equal_the_dense_ones(which):
    _, loss_fn, params, data = problem("batch norm")
    matrix, values, _ = dense_of("batch norm")
    order = {
        "LA": np.argsort(-values)[:4],
        "SA": np.argsort(values)[:4],
        "LM": np.argsort(-abs(values))[:4],
        "BE": np.array([0, -1, 1, -2]),
    }[which]
    result = js.top_eigenpairs(params, loss_fn, data, 4, which, tol=1e-9, max_matvecs=400, progress=False)
    assert result.converged.all()
    np.testing.assert_allclose(result.eigenvalues, values[order], rtol=1e-8)
    for value, vector, residual in zip(result.eigenvalues, result.eigenvectors, result.residuals, strict=True):
        flat = ravel_pytree(vector)[0]
        np.testing.assert_allclose(np.linalg.norm(flat), 1, rtol=1e-12)
        np.testing.assert_allclose(np.linalg.norm(matrix @ flat - value * flat), residual, atol=1e-12)


@pytest.mark.slow
def test_ignored_leaves_take_no_part():
    _, loss_fn, params, data = problem("batch norm")
    matrix = dense_of("batch norm")[0]
    takes_part = np.concatenate([np.full(leaf.size, leaf.ndim > 1) for leaf in jax.tree.leaves(params)])
    values = np.linalg.eigvalsh(matrix[np.ix_(takes_part, takes_part)])
    result = js.extreme_eigenvalues(params, loss_fn, data, tol=1e-9, ignore="bias_norm", progress=False)
    np.testing.assert_allclose([result.min_eigenvalue, result.max_eigenvalue], values[[0, -1]], rtol=1e-8)
    flat = ravel_pytree(result.max_eigenvector)[0]
    assert not flat[~takes_part].any()
    v, image = apply(js.hvp(loss_fn, params, data, ignore="bias_norm"), params)
    np.testing.assert_allclose(image, np.where(takes_part, matrix @ np.where(takes_part, v, 0), 0), atol=1e-12)


@pytest.mark.slow
def test_eigenvalues_do_not_depend_on_batches_devices_and_order_in_float32():
    _, loss_fn, params, data = problem("convolutions", examples=61)
    params = jax.tree.map(lambda x: x.astype(jnp.float32), params)
    data = (data[0].astype(np.float32), data[1])
    order = np.random.default_rng(3).permutation(61)
    shuffled = tuple(x[order] for x in data)
    result = [
        js.extreme_eigenvalues(params, loss_fn, part, tol=1e-4, batch_size=b, mesh=mesh(d), progress=False)
        for part, b, d in ((data, 61, 1), (data, 7, 8), (shuffled, 16, 2))
    ]
    for other in result[1:]:
        for name in ("min_eigenvalue", "max_eigenvalue"):
            np.testing.assert_allclose(getattr(other, name), getattr(result[0], name), rtol=1e-5)


def test_eigenvectors_are_axes_of_the_sharpest_plane():
    _, loss_fn, params, data = problem("batch norm")
    pairs = js.top_eigenpairs(params, loss_fn, data, 2, "BE", tol=1e-8, progress=False)
    step = 1e-3
    grid = js.Grid.plane((-step, step, 3), (-step, step, 3))
    surface = js.surface(params, loss_fn, data, directions=pairs.eigenvectors, grid=grid, progress=False)
    for dim, value in zip(("alpha", "beta"), pairs.eigenvalues, strict=True):
        along = surface.loss.sel({d: 0 for d in ("alpha", "beta") if d != dim}).values
        np.testing.assert_allclose((along[0] - 2 * along[1] + along[2]) / step**2, value, rtol=1e-4)
    assert surface.attrs["directions"] == "eigenvectors BE"


def test_trace_by_both_methods():
    _, loss_fn, params, data = problem("mlp")
    matrix, values, _ = dense_of("mlp")
    matvecs = {"hutchinson": 80, "hutch++": 60}
    for method, num in matvecs.items():
        errors, bars = zip(
            *(
                (result.trace - values.sum(), result.stderr)
                for result in (
                    js.hessian_trace(
                        params, loss_fn, data, method=method, num_matvecs=num, key=k, mesh=mesh(1), progress=False
                    )
                    for k in range(4)
                )
            ),
            strict=True,
        )
        scores = np.array(errors) / np.array(bars)
        assert np.abs(scores).max() < 4.5
        assert 0.3 < np.sqrt(np.mean(scores**2)) < 2.2
    exact = js.hessian_trace(params, loss_fn, data, num_matvecs=3 * matrix.shape[0], mesh=mesh(1), progress=False)
    np.testing.assert_allclose(exact.trace, values.sum(), rtol=1e-9)
    assert exact.stderr == 0


@pytest.mark.parametrize(
    ("method", "num_matvecs"),
    [
        slow_unless(quick, method, num)
        for quick, method, num in (
            (False, "hutchinson", 2),
            (True, "hutch++", 6),
            (False, "hutchinson", 6),
            (False, "hutch++", 9),
            (False, "hutch++", 12),
        )
    ],
)
def test_error_bars_of_few_products_hold(method, num_matvecs):
    """Ordinary standard errors of 2 to 3 values had held in 56 to 88 % of the cases."""
    values = np.random.default_rng(0).normal(size=60)
    turned = np.linalg.qr(np.random.default_rng(1).normal(size=(60, 60)))[0]
    matrix = jnp.asarray(turned @ np.diag(values) @ turned.T)
    operator = js.Operator.of(jax.jit(lambda v: matrix @ v), jnp.zeros(60))
    estimates = [operator.trace(num_matvecs=num_matvecs, method=method, key=k, progress=False) for k in range(100)]
    inside = np.mean([abs(e.trace - values.sum()) < 2 * e.stderr for e in estimates])
    assert inside > 0.89  # of 95 %, three standard errors of 100 cases
    assert all(e.num_matvecs <= num_matvecs for e in estimates)


@pytest.mark.parametrize("sigma", slow_but([1e-6], [1e-6, 1e-3, 0.03]))
def test_a_density_narrower_than_its_points_has_its_mass_in_place(sigma):
    spectrum = jnp.array([-1.0, 0.305, 0.31, 2.0])
    operator = js.Operator.of(lambda v: spectrum * v, jnp.zeros(4))
    result = operator.spectral_density(sigma=sigma, num_points=100, num_probes=100, progress=False)
    at = result.eigenvalue.values
    np.testing.assert_allclose(np.trapezoid(result.density, at), 1, rtol=1e-8)
    mass = result.density.values * (at[1] - at[0])
    for eigenvalue, share in ((-1.0, 0.25), (0.3075, 0.5), (2.0, 0.25)):
        near = abs(at - eigenvalue) <= max(4 * sigma, 0.04)
        np.testing.assert_allclose(mass[near].sum(), share, atol=0.12)


def test_hutch_plus_plus_has_smaller_error_bars_than_hutchinson():
    _, loss_fn, params, data = problem("mlp")
    bars = [
        js.hessian_trace(params, loss_fn, data, method=m, num_matvecs=60, mesh=mesh(1), progress=False).stderr
        for m in ("hutch++", "hutchinson")
    ]
    assert bars[0] < 0.6 * bars[1]


@pytest.mark.parametrize("name", slow_but(["mlp"], ["mlp", "convolutions"]))
def test_density_integrates_to_one_and_matches_the_histogram(name):
    _, loss_fn, params, data = problem(name)
    _, values, _ = dense_of(name)
    sigma = (values[-1] - values[0]) / 20
    result = js.spectral_density(
        params, loss_fn, data, num_probes=60, num_steps=30, sigma=sigma, num_points=400, mesh=mesh(1), progress=False
    )  # 30 steps are exact for polynomials of degree 59, and these Gaussians are of that degree to 1e-8
    at = result.eigenvalue.values
    np.testing.assert_allclose(np.trapezoid(result.density, at), 1, rtol=1e-8)
    exact = np.exp(-0.5 * ((at[:, None] - values) / sigma) ** 2).mean(1) / sigma / np.sqrt(2 * np.pi)
    score = (result.density.values - exact) / np.maximum(result.density_stderr.values, 1e-3 * exact.max())
    assert np.abs(score).max() < 5
    assert np.sqrt(np.mean(score**2)) < 1.7
    edges = np.linspace(at[0], at[-1], 8)
    ranges = list(itertools.pairwise(edges))
    share = [float(result.density.sel(eigenvalue=slice(a, b)).integrate("eigenvalue")) for a, b in ranges]
    counted = [exact[(at >= a) & (at <= b)].sum() * (at[1] - at[0]) for a, b in ranges]
    np.testing.assert_allclose(share, counted, atol=0.05)
    score = (result.attrs["mean_eigenvalue"] - values.mean()) / result.attrs["mean_eigenvalue_stderr"]
    assert abs(score) < 4


@pytest.mark.slow
def test_random_directions_have_the_mean_curvature():
    """Paper, section 6: the curvatures of a random plane are weighted averages of the full ones."""
    _, loss_fn, params, data = problem("convolutions")
    matrix, values, vectors = dense_of("convolutions")
    flat, unravel = ravel_pytree(params)
    u = jax.random.normal(jax.random.key(0), (400, len(flat)))
    u /= jnp.linalg.norm(u, axis=1, keepdims=True)
    product = jax.jit(js.hvp(loss_fn, params, data, mesh=mesh(1)))
    curvatures = np.array([d @ ravel_pytree(product(unravel(d)))[0] for d in u])
    np.testing.assert_allclose(curvatures, (np.asarray(u @ vectors) ** 2) @ values, rtol=1e-9)
    score = (curvatures.mean() - values.mean()) / (curvatures.std(ddof=1) / 20)
    assert abs(score) < 4


BAD_CALLS = {
    "batch_size": (lambda c: c.product(c.data, batch_size=0), "batch_size is 0"),
    "lengths": (lambda c: c.product((c.data[0], c.data[1][:-1])), "differ in their number of examples"),
    "all ignored": (lambda c: c.product(c.data, ignore=lambda *_: True), "leaves no leaf of params"),
    "ignore": (lambda c: c.product(c.data, ignore="norms"), "ignore is 'norms'"),
    "shape of the loss": (lambda c: js.hvp(lambda p, b: b[0], c.params, c.data), r"loss_fn returned \(23, 5\)"),
    "vector": (lambda c: c.product(c.data)({"layer0": c.params["layer0"]}), r"v has no leaf \['layer1'\]"),
    "tol": (lambda c: c.call(js.extreme_eigenvalues, tol=0), "tol is 0"),
    "max_matvecs": (lambda c: c.call(js.extreme_eigenvalues, max_matvecs=2), "max_matvecs is 2, expected at least 3"),
    "max_basis": (lambda c: c.call(js.extreme_eigenvalues, max_basis=3), "max_basis is 3, expected at least 6"),
    "no pair": (lambda c: c.call(js.top_eigenpairs, k=0), "k is 0, expected an integer of at least 1"),
    "pairs": (lambda c: c.call(js.top_eigenpairs, k=75), "k is 75, expected between 1 and the 74 entries"),
    "which": (lambda c: c.call(js.top_eigenpairs, which="XX"), "which is 'XX', expected"),
    "method": (lambda c: c.call(js.hessian_trace, method="exact"), "method is 'exact'"),
    "num_matvecs": (lambda c: c.call(js.hessian_trace, num_matvecs=5), r"num_matvecs is 5, .* 6 for hutch\+\+"),
    "num_probes": (lambda c: c.call(js.spectral_density, num_probes=1), "num_probes is 1, expected at least 2"),
    "num_steps": (
        lambda c: c.call(js.spectral_density, num_steps=0),
        "num_steps is 0, expected an integer of at least 1",
    ),
    "num_points": (lambda c: c.call(js.spectral_density, num_points=1), "num_points is 1, expected at least 8"),
    "sigma": (lambda c: c.call(js.spectral_density, sigma=-1.0), "sigma is -1.0, expected a positive number"),
}


class Calls:
    """Calls on a small network."""

    def __init__(self):
        _, self.loss_fn, self.params, self.data = problem("mlp")

    def product(self, data, **options):
        return js.hvp(self.loss_fn, self.params, data, **options)

    def call(self, function, **options):
        return function(self.params, self.loss_fn, self.data, progress=False, **options)


@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_calls(name):
    call, match = BAD_CALLS[name]
    with pytest.raises(ValueError, match=match):
        call(Calls())


def test_bad_types():
    _, loss_fn, _, data = problem("mlp")
    with pytest.raises(TypeError, match=r"params\['n'\] is int"):
        js.hvp(loss_fn, {"n": jnp.arange(3)}, data)
    with pytest.raises(TypeError, match="mesh is int, expected a jax.sharding.Mesh of devices, or None"):
        js.hvp(loss_fn, mlp_params(), data, mesh=3)
    with pytest.raises(TypeError, match="k is 2.0, expected an integer"):
        js.top_eigenpairs(mlp_params(), loss_fn, data, 2.0)
    with pytest.raises(TypeError, match="model_fn is str, expected a function"):
        js.ggn_product("model", loss_fn, mlp_params(), data)
    with pytest.raises(TypeError, match="key is str"):
        js.extreme_eigenvalues(mlp_params(), loss_fn, data, key="seed")


@pytest.mark.slow
def test_resnet20_on_digits_against_scipy():
    with jax.enable_x64(False):
        data = js.datasets.load("digits")[0]
        data = js.datasets.Split(*(x[:128] for x in data))
        model = runs.build_model({"arch": "resnet20", "noshort": False, "seed": 0}, data)
        graphdef, params, stats = nnx.split(model, nnx.Param, nnx.BatchStat)
        params, stats = map(nnx.to_pure_dict, (params, stats))
        loss_fn = runs.classification_loss(graphdef, stats)
        result = js.extreme_eigenvalues(params, loss_fn, data, tol=1e-4, max_matvecs=300, progress=False)
        flat, unravel = ravel_pytree(params)
        product = js.hvp(loss_fn, params, data)

        def matvec(v):
            return np.asarray(ravel_pytree(product(unravel(jnp.asarray(v.ravel(), jnp.float32))))[0])

        linear = scipy.sparse.linalg.LinearOperator((len(flat),) * 2, matvec=matvec, dtype=np.float32)
        ends = [scipy.sparse.linalg.eigsh(linear, 1, which=w, tol=1e-4)[0][0] for w in ("SA", "LA")]
    assert result.converged
    np.testing.assert_allclose([result.min_eigenvalue, result.max_eigenvalue], ends, rtol=1e-3)
