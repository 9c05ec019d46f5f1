"""Streams: batches that are read again and again give what arrays give; what changes from pass to pass is refused."""

import subprocess
import sys
import threading
import time
import warnings
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh

import jaxscape as js
from jaxscape.engine import Program
from jaxscape.interpolation import _statistics
from jaxscape.maps import _map
from jaxscape.objective import Objective, _passes
from tests.problems import classification_data, launch, mlp_apply, mlp_loss, mlp_params, slow_but

PARAMS, DATA = mlp_params(), classification_data(examples=37)
DIRECTIONS = js.random_directions(0, PARAMS)
GRID = js.Grid.plane((-1, 1, 5), (0, 1, 3))


def cut(data, *sizes):
    """Batches of these sizes, again and again, the last one ragged."""
    batches, start = [], 0
    while start < len(data[0]):
        size = sizes[len(batches) % len(sizes)]
        batches.append(tuple(x[start : start + size] for x in data))
        start += size
    return batches


def plane(data, loss=mlp_loss, params=PARAMS, **options):
    return js.surface(params, loss, data, directions=DIRECTIONS, grid=GRID, progress=False, **options)


def summed(params, batch):
    return mlp_loss(params, batch)["loss"].mean()


class Loader:
    """As a torch DataLoader: it can be iterated again and again, and has a length."""

    def __init__(self, batches):
        self.batches, self.passes = batches, 0

    def __iter__(self):
        self.passes += 1
        return iter(self.batches)

    def __len__(self):
        return len(self.batches)


@pytest.mark.parametrize("sizes", [(8,), (37,), (1, 2, 3), (5, 11)])
def test_a_surface_is_that_of_arrays(sizes):
    streamed, arrays = plane(js.Stream(cut(DATA, *sizes))), plane(DATA)
    for name in ("loss", "accuracy"):
        np.testing.assert_allclose(streamed[name], arrays[name], rtol=1e-12)
        digits = 1e-10 if name == "loss" else 1e-6  # an accuracy is summed in float32
        np.testing.assert_allclose(streamed[f"{name}_stderr"], arrays[f"{name}_stderr"], rtol=digits)
    assert (streamed.num_examples == 37).all()


@pytest.mark.parametrize("form", ["list", "loader", "function", "lists of arrays", "jax arrays"])
def test_everything_that_can_be_read_again(form):
    batches = cut(DATA, 8)
    stream = {
        "list": batches,
        "loader": Loader(batches),
        "function": lambda: (batch for batch in batches),
        "lists of arrays": [list(batch) for batch in batches],
        "jax arrays": [jax.tree.map(jnp.asarray, batch) for batch in batches],
    }[form]
    np.testing.assert_allclose(plane(js.Stream(stream)).loss, plane(DATA).loss, rtol=1e-12)


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_batches_are_cut_into_smaller_ones(batch_size):
    streamed = plane(js.Stream(cut(DATA, 16, 7)), batch_size=batch_size)
    np.testing.assert_allclose(streamed.loss, plane(DATA).loss, rtol=1e-12)
    assert streamed.attrs["batch_size"] <= batch_size


def test_devices_share_points_or_examples():
    devices = np.array(jax.devices())
    one = plane(DATA, mesh=Mesh(devices[:1], ("points",)))
    for mesh in (Mesh(devices[:1], ("points",)), Mesh(devices.reshape(2, -1), ("points", "data"))):
        np.testing.assert_allclose(plane(js.Stream(cut(DATA, 8)), mesh=mesh).loss, one.loss, rtol=1e-12)


def test_a_loss_that_is_the_mean_of_a_batch():
    streamed = plane(js.Stream(cut(DATA, 8)), summed)
    np.testing.assert_allclose(streamed.loss, plane(DATA).loss, rtol=1e-12)
    assert "loss_stderr" not in streamed


def weighted(params, batch):
    x, labels, weights = batch
    return {"loss": mlp_loss(params, (x, labels))["loss"], "weight": weights}


def test_weights():
    weights = np.arange(37.0) % 5
    weights[8:16] = 0  # a whole batch says nothing
    data = (*DATA, weights)
    streamed, arrays = plane(js.Stream(cut(data, 8)), weighted), plane(data, weighted)
    np.testing.assert_allclose(streamed.loss, arrays.loss, rtol=1e-12)
    np.testing.assert_allclose(streamed.loss_stderr, arrays.loss_stderr, rtol=1e-10)
    v = DIRECTIONS[0]
    np.testing.assert_allclose(
        js.hvp(weighted, PARAMS, js.Stream(cut(data, 8)))(v)["layer0"]["kernel"],
        js.hvp(weighted, PARAMS, data)(v)["layer0"]["kernel"],
        rtol=1e-10,
    )


def test_terms_of_their_own_data():
    loss = {"all": summed, "squares": lambda p, x: (p["layer0"]["kernel"] ** 2).sum() * x}
    data = {"all": js.Stream(cut(DATA, 8)), "squares": np.arange(3.0)}
    streamed, arrays = plane(data, loss), plane({**data, "all": DATA}, loss)
    for name in ("loss", "loss_all", "loss_squares"):
        np.testing.assert_allclose(streamed[name], arrays[name], rtol=1e-12)


def test_each_batch_is_read_once_for_all_points():
    loader = Loader(cut(DATA, 8))
    plane(js.Stream(loader))
    assert loader.passes == 2  # the first batch, and all of them


def test_a_loader_may_use_one_buffer_again():
    def batches():
        buffer = np.empty((8, 5)), np.empty(8, int)
        for x, labels in cut((DATA[0][:32], DATA[1][:32]), 8):
            buffer[0][:], buffer[1][:] = x, labels
            yield buffer

    np.testing.assert_allclose(plane(js.Stream(batches)).loss, plane((DATA[0][:32], DATA[1][:32])).loss, rtol=1e-12)


# Curvature and trajectories


@pytest.mark.parametrize("batch_size", ["auto", 3])
@pytest.mark.parametrize("loss", [mlp_loss, summed], ids=["examples", "mean"])
def test_products_with_the_hessian(loss, batch_size):
    v = DIRECTIONS[0]
    streamed = js.hvp(loss, PARAMS, js.Stream(cut(DATA, 16, 7)), batch_size=batch_size)
    expected = js.hvp(mlp_loss, PARAMS, DATA)(v)
    for _ in range(2):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12), streamed(v), expected)


def test_gauss_newton_and_its_spectrum():
    def loss(outputs, batch):
        return -jnp.take_along_axis(jax.nn.log_softmax(outputs), batch[1][:, None], axis=1)[:, 0]

    mesh = Mesh(np.array(jax.devices()[:1]), ("data",))
    of = [
        js.ggn_product(lambda p, b: mlp_apply(p, b[0]), loss, PARAMS, data, mesh=mesh)
        for data in (DATA, js.Stream(cut(DATA, 16)))
    ]
    arrays, streamed = (operator.extreme_eigenvalues(progress=False) for operator in of)
    np.testing.assert_allclose(streamed.max_eigenvalue, arrays.max_eigenvalue, rtol=1e-10)
    np.testing.assert_allclose(of[1].trace(progress=False).trace, of[0].trace(progress=False).trace, rtol=1e-10)


def test_a_map_of_eigenvalues():
    grid = js.Grid.line(-1, 1, 2)
    arrays, streamed = (
        js.eigenvalue_map(PARAMS, mlp_loss, d, directions=DIRECTIONS[0], grid=grid, tol=1e-6, progress=False)
        for d in (DATA, js.Stream(cut(DATA, 8)))
    )
    for name in ("min_eigenvalue", "max_eigenvalue", "plane_hessian"):
        np.testing.assert_allclose(streamed[name], arrays[name], rtol=1e-6)
    assert streamed.attrs["num_examples"] == 37


def test_losses_along_a_path():
    steps = [js.random_directions(i, PARAMS, num=1)[0] for i in range(3)]
    path = [*(jax.tree.map(lambda x, d: x + 0.1 * d, PARAMS, step) for step in steps), PARAMS]
    grid = {"points": 3, "progress": False}
    arrays, streamed = (js.trajectory(path, mlp_loss, d, **grid) for d in (DATA, js.Stream(cut(DATA, 8))))
    np.testing.assert_allclose(streamed.true_loss, arrays.true_loss, rtol=1e-12)


def test_flatness():
    names = ["keskar", "lambda_max", "average_case_adaptive"]
    arrays, streamed = (
        js.sharpness(PARAMS, mlp_loss, d, measures=names, num_samples=4, progress=False)
        for d in (DATA, js.Stream(cut(DATA, 8)))
    )
    np.testing.assert_allclose(streamed.value, arrays.value, rtol=1e-8)
    with pytest.raises(ValueError, match="m_sharpness.*needs data in memory, not a js.Stream"):
        js.sharpness(PARAMS, mlp_loss, js.Stream(cut(DATA, 8)), measures=["m_sharpness"])


# Tolerance, adaptive grids, stores


def test_to_a_tolerance_some_batches_are_enough():
    data = classification_data(examples=2000)
    grid = js.Grid.plane((-0.5, 0.5, 9), (-0.5, 0.5, 9))
    options = {"directions": DIRECTIONS, "grid": grid, "progress": False}
    exact = js.surface(PARAMS, mlp_loss, data, **options)
    inside = []
    for seed in range(2):  # with four times as many examples and 25 seeds 95.5 % were within 2 standard errors
        streamed = js.surface(PARAMS, mlp_loss, js.Stream(cut(data, 8)), rtol=0.01, seed=seed, **options)
        assert streamed.num_examples.values.sum() < 0.7 * exact.num_examples.values.sum()
        assert (streamed.loss_stderr <= 0.01 * streamed.loss + 1e-12).all()
        sampled = streamed.loss_stderr.values > 0
        off = np.abs(streamed.loss - exact.loss).values
        assert sampled.mean() > 0.5
        inside.append((off[sampled] < 2 * streamed.loss_stderr.values[sampled]).mean())
        np.testing.assert_allclose(off[~sampled], 0, atol=1e-12)
    assert np.mean(inside) > 0.85
    again = js.surface(PARAMS, mlp_loss, js.Stream(cut(data, 8)), rtol=0.01, seed=seed, **options)
    np.testing.assert_array_equal(again.loss, streamed.loss)


def test_weighted_batches_to_a_tolerance_are_exact_where_all_are_taken():
    data = (*DATA, np.arange(37.0) % 5)
    exact = plane(data, weighted)
    streamed = plane(js.Stream(cut(data, 3)), weighted, rtol=1e-9)
    np.testing.assert_allclose(streamed.loss, exact.loss, rtol=1e-12)
    assert (streamed.num_examples == 37).all()


def test_an_adaptive_grid():
    grid = js.Grid.plane((-1, 1, 33), (-1, 1, 33))
    arrays, streamed = (
        js.surface(PARAMS, mlp_loss, d, directions=DIRECTIONS, grid=grid, refine=0.1, progress=False)
        for d in (DATA, js.Stream(cut(DATA, 8)))
    )
    np.testing.assert_allclose(streamed.loss, arrays.loss, rtol=1e-8)
    np.testing.assert_array_equal(streamed.evaluated, arrays.evaluated)


@pytest.mark.parametrize("rtol", [None, 0.05])
def test_a_store_goes_on_and_knows_its_data(tmp_path, rtol):
    store = tmp_path / "s.zarr"
    first = plane(js.Stream(cut(DATA, 8)), store=store, rtol=rtol)
    loader = Loader(cut(DATA, 8))
    np.testing.assert_array_equal(plane(js.Stream(loader), store=store, rtol=rtol).loss, first.loss)
    assert loader.passes == 2  # its first batch, and its hash; no point is left
    other = (DATA[0] + 1, DATA[1])
    with pytest.raises(ValueError, match="data"):
        plane(js.Stream(cut(other, 8)), store=store, rtol=rtol)


def test_the_fingerprint_is_of_the_contents():
    first, same = (plane(js.Stream(cut(DATA, 8))).attrs["fingerprint"] for _ in range(2))
    other = plane(js.Stream(cut((DATA[0] + 1e-6, DATA[1]), 8))).attrs["fingerprint"]
    assert first == same != other


# Threads and memory that others hold


class Shared:
    """As a torch loader with persistent workers: one iterator, which each pass begins anew."""

    def __init__(self, batches):
        self.batches, self.at = batches, 0

    def __iter__(self):
        self.at = 0
        return self.Iterator(self)

    class Iterator:
        def __init__(self, loader):
            self.loader = loader

        def __iter__(self):
            return self

        def __next__(self):
            if self.loader.at == len(self.loader.batches):
                raise StopIteration
            self.loader.at += 1
            return self.loader.batches[self.loader.at - 1]


def test_a_loader_with_one_iterator_for_all_passes():
    loader = Shared(cut(DATA, 8))
    loss = {"a": summed, "b": summed}
    result = plane({"a": js.Stream(loader), "b": js.Stream(loader)}, loss)
    np.testing.assert_allclose(result.loss_b, plane(DATA).loss, rtol=1e-12)
    steps = [js.random_directions(i, PARAMS, num=1)[0] for i in range(3)]
    path = [*(jax.tree.map(lambda x, d: x + 0.1 * d, PARAMS, step) for step in steps), PARAMS]
    arrays, streamed = (js.trajectory(path, mlp_loss, d, points=3, progress=False) for d in (DATA, js.Stream(loader)))
    np.testing.assert_allclose(streamed.in_plane_loss, arrays.in_plane_loss, rtol=1e-12)


@pytest.mark.parametrize("kind", ["put", "dlpack"])
def test_a_buffer_behind_a_jax_array(kind):
    x = np.arange(4096.0)

    def batches():
        memory = np.empty(8 * 512 + 64, np.uint8)
        start = -memory.ctypes.data % 64  # so aligned, `jax.device_put` shares it
        buffer = memory[start : start + 8 * 512].view(np.float64)
        for i in range(0, 4096, 512):
            buffer[:] = x[i : i + 512]
            yield jax.device_put(buffer) if kind == "put" else jax.dlpack.from_dlpack(buffer)

    grid = js.Grid.line(0, 1, 2)
    arrays, streamed = (
        js.surface(jnp.ones(()), lambda p, b: b * p, d, grid=grid, directions=jnp.ones(()), progress=False)
        for d in (x, js.Stream(batches))
    )
    np.testing.assert_allclose(streamed.loss, arrays.loss, rtol=1e-12)


def test_what_a_generator_sets_for_its_thread_stays_there():
    seen, ended = [], []

    def batches():
        with jax.default_matmul_precision("bfloat16"), np.errstate(all="raise"):
            try:
                for batch in cut(DATA, 8):
                    seen.append(threading.current_thread())
                    yield batch
            finally:
                ended.append(threading.current_thread())

    before = jax.config.jax_default_matmul_precision, np.geterr()
    plane(js.Stream(batches))
    assert (jax.config.jax_default_matmul_precision, np.geterr()) == before
    assert len(set(ended)) == len(ended) == 2
    assert set(seen) == set(ended)
    assert threading.main_thread() not in seen


def test_an_iterator_that_can_be_closed_is_closed():
    closed = []

    class Closing(Shared.Iterator):
        def close(self):
            closed.append(self)

    class Files(Shared):
        Iterator = Closing

    plane(js.Stream(Files(cut(DATA, 8))))
    assert len(closed) == 2


def test_the_tolerance_mode_does_not_keep_the_batches(monkeypatch):
    alive, most, fed = weakref.WeakSet(), [], Program.fed

    def counted(program, data):
        other = fed(program, data)  # it holds the batch
        alive.add(other)
        most.append(len(alive))
        return other

    monkeypatch.setattr(Program, "fed", counted)
    batches = [np.full((4, 2), float(i)) for i in range(200)]
    options = {"directions": jnp.ones(()), "grid": js.Grid.line(-1, 1, 3), "progress": False}
    js.surface(jnp.ones(()), lambda p, b: p * b[:, 0], js.Stream(batches), rtol=0.1, **options)
    assert len(most) >= 200
    assert max(most) < 10


def test_an_error_does_not_wait_for_a_loader_that_hangs():
    data = classification_data(examples=300)

    def batches():
        yield from cut(data, 64)[:3]  # the first two have the 128 examples that are read before
        time.sleep(30)

    (term,) = Objective.of(mlp_loss, PARAMS, js.Stream(batches), check=False).terms
    iterator = iter(term.passes)
    next(iterator)
    begin = time.perf_counter()
    iterator.close()
    assert time.perf_counter() - begin < 10


@pytest.mark.parametrize("rtol", [None, 0.05])
def test_a_first_batch_of_one_example(rtol):
    np.testing.assert_allclose(
        plane(js.Stream(cut(DATA, 1, 36)), rtol=rtol).loss, plane(DATA).loss, rtol=0.2 if rtol else 1e-12
    )


# What is refused


def test_a_reshuffling_loader():
    rng = np.random.default_rng(0)

    def shuffled():
        order = rng.permutation(37)
        return iter(cut(tuple(x[order] for x in DATA), 8))

    with pytest.raises(
        ValueError, match="batch 0 of data is not what it was when it was read before.*switch off shuffling"
    ):
        plane(js.Stream(shuffled))


def test_an_augmenting_loader_is_found_in_a_later_batch():
    rng = np.random.default_rng(0)
    data = classification_data(examples=300)

    def batches():
        for i, (x, labels) in enumerate(cut(data, 64)):
            yield (x if i < 3 else x + rng.normal(size=x.shape)), labels

    product = js.hvp(mlp_loss, PARAMS, js.Stream(batches))  # its first 128 examples are read again
    with pytest.raises(ValueError, match="batch 3 of data is not what it was when it was read before"):
        product(DIRECTIONS[0])


@pytest.mark.parametrize("later", [3, 5])
def test_a_pass_of_another_length(later):
    lengths = iter([5, 4, later, later])
    data = classification_data(examples=400)

    def batches():
        return iter(cut(data, 64)[: next(lengths)])

    product = js.hvp(mlp_loss, PARAMS, js.Stream(batches))
    with pytest.raises(ValueError, match=f"data gave {later} batches, and 4 when it was read before"):
        product(DIRECTIONS[0])


def test_what_can_be_read_once_only():
    with pytest.raises(
        TypeError, match=r"batches is a generator, which can be read once only.*js.Stream\(make_batches\)"
    ):
        js.Stream(batch for batch in cut(DATA, 8))
    once = iter(cut(classification_data(examples=400), 64))
    with pytest.raises(ValueError, match="batch 0 of data is not what it was when it was read before"):
        plane(js.Stream(lambda: once))
    one = iter(cut(DATA, 37))
    with pytest.raises(ValueError, match="data gave batches once, and none the second time"):
        plane(js.Stream(lambda: one))


class Examples:
    """As a map-style dataset of torch."""

    def __len__(self):
        return 37

    def __getitem__(self, i):
        return DATA[0][i], DATA[1][i]


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        (DATA, "batches is a tuple, expected a list of batches"),
        ({"x": DATA[0]}, "batches is a dict, expected a list of batches"),
        (DATA[0], "batches is a ndarray, expected a list of batches"),
        (Examples(), "batches is an Examples, which gives single examples by their numbers"),
        (3, "batches is an int, expected a loader"),
        (lambda: DATA, "batches gave a tuple when it was called, expected an iterator of batches"),
        (lambda: DATA[0], "batches gave a ndarray when it was called"),
        (lambda: 3, "batches gave an int when it was called"),
    ],
)
def test_what_gives_no_batches(batches, message):
    with pytest.raises(TypeError, match=message):
        plane(js.Stream(batches))


def test_batches_of_other_forms():
    x, labels = DATA
    for second, message in (
        ((x[8:16, :4], labels[8:16]), r"batch 1 of data\[0\] has float64\[8, 4\], expected float64\[any, 5\]"),
        ((x[8:16].astype("float32"), labels[8:16]), r"batch 1 of data\[0\] has float32\[8, 5\], expected float64"),
        ({"x": x[8:16]}, "batch 1 of data has the structure"),
        ((x[8:16], labels[8:15]), "the leaves of batch 1 of data differ in their number of examples"),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            plane(js.Stream([(x[:8], labels[:8]), second]))
    with pytest.raises(ValueError, match="data gave no batch"):
        plane(js.Stream([]))


def test_an_error_of_the_loader_comes_out_and_ends_its_thread():
    def batches():
        yield from cut(DATA, 8)[:3]
        raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        plane(js.Stream(batches))
    time.sleep(0.05)
    assert not [t for t in threading.enumerate() if t.name == "jaxscape-stream"]


@pytest.mark.parametrize("raw", ["generator", "loader", "dataset", "function", "list of batches", "ragged list"])
def test_a_loader_without_the_stream_is_told_of_it(raw):
    data = {
        "generator": (batch for batch in cut(DATA, 8)),
        "loader": Loader(cut(DATA, 8)),
        "dataset": Examples(),
        "function": lambda: iter(cut(DATA, 8)),
        "list of batches": cut(DATA, 8)[:4],
        "ragged list": cut(DATA, 8),
    }[raw]
    with pytest.raises((TypeError, ValueError)) as error:  # the last one by the loss, which gets the list
        plane(data)
    notes = [str(error.value), *getattr(error.value, "__notes__", [])]
    assert any("js.Stream(" in note for note in notes)


def test_calls_that_need_examples_by_their_numbers():
    stream = js.Stream(cut(DATA, 8))
    with pytest.raises(TypeError, match="subset takes examples by their numbers"):
        js.eigenvalue_map(PARAMS, mlp_loss, stream, subset=5)
    with pytest.raises(TypeError, match="js.connect takes examples by their numbers"):
        js.connect(PARAMS, PARAMS, mlp_loss, stream, optimizer=optax.sgd(0.1), num_steps=1)
    with pytest.raises(ValueError, match="linearize is True.*js.Stream"):
        js.hvp(mlp_loss, PARAMS, stream, linearize=True)
    with pytest.raises(TypeError, match="a js.Stream is read from the host"):
        jax.jit(js.hvp(mlp_loss, PARAMS, stream))(DIRECTIONS[0])


@pytest.mark.check
@pytest.mark.parametrize("sizes", [(16,), (1,), (1, 36)])
def test_the_first_examples_tell_a_loss_that_is_no_mean(sizes):
    def centred(params, batch):
        logits = mlp_apply(params, batch[0])
        return (logits - logits.mean(0)).sum(-1) ** 2

    for loss in (centred, lambda p, b: mlp_loss(p, b)["loss"].sum()):
        with pytest.raises(ValueError, match="loss_fn is no mean over examples"):
            plane(js.Stream(cut(DATA, *sizes)), loss)


# Memory

BOUNDED = """
import resource, sys
import jax.numpy as jnp
import numpy as np
import jaxscape as js

params, grid = {"w": jnp.ones((2, 2))}, js.Grid.line(0, 1, 3)
loss = lambda p, x: (p["w"].sum() * x).mean(-1)
batches = lambda num: (lambda: (np.full((1000, 2500), i, np.float32) for i in range(num)))
run = lambda num: js.surface(params, loss, js.Stream(batches(num)), grid=grid, directions=params, progress=False)
run(20)  # compiles
held = next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith("VmSize"))
resource.setrlimit(resource.RLIMIT_AS, (held + (320 << 20),) * 2)
print(float(run(330).loss[0]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the limit and /proc are Linux's")
def test_ten_times_the_memory_that_is_left():
    done = subprocess.run([sys.executable, "-c", BOUNDED], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert float(done.stdout) == pytest.approx(4 * np.mean(range(330)))  # 3.3 GB in batches of 10 MB, 320 MB are left


# Several processes

WORKER = """
from tests.test_stream import DATA, DIRECTIONS, GRID, PARAMS, cut, mlp_loss, plane, summed
share = tuple(x[:21] if index == 0 else x[21:] for x in DATA)
stream = js.Stream(cut(share, 8))
exact = plane(stream)
mean = plane(stream, summed)
rough = plane(stream, rtol=1e-9)
product = js.hvp(mlp_loss, PARAMS, stream)(DIRECTIONS[0])
stored = plane(stream, store=f"{out}/s.zarr")
try:
    plane(js.Stream(cut(DATA, 8)))
    message = ""
except ValueError as error:
    message = str(error)
np.savez(f"{out}/{index}.npz", exact=exact.loss, mean=mean.loss, rough=rough.loss, stored=stored.loss,
         stderr=exact.loss_stderr, num=exact.num_examples, product=product["layer0"]["kernel"], message=message,
         fingerprint=exact.attrs["fingerprint"])
"""


@pytest.mark.slow
def test_each_process_streams_examples_of_its_own(tmp_path):
    processes = launch(2, tmp_path, WORKER)
    output = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], output
    whole, v = plane(DATA), DIRECTIONS[0]
    results = [np.load(tmp_path / f"{i}.npz") for i in range(2)]
    for result in results:
        for name in ("exact", "mean", "rough", "stored"):
            np.testing.assert_allclose(result[name], whole.loss, rtol=1e-12)
        np.testing.assert_allclose(result["stderr"], whole.loss_stderr, rtol=1e-10)
        np.testing.assert_array_equal(result["num"], 37)
        expected = js.hvp(mlp_loss, PARAMS, DATA)(v)["layer0"]["kernel"]
        np.testing.assert_allclose(result["product"], expected, rtol=1e-10)
        assert "the same batches in several processes" in str(result["message"])
    assert results[0]["fingerprint"] == results[1]["fingerprint"]


# Loaders of libraries


@pytest.mark.parametrize("workers", slow_but([0], [0, 2]))
def test_a_torch_loader(workers):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    from torch.utils.data import DataLoader, TensorDataset

    tensors = TensorDataset(*map(torch.from_numpy, DATA))
    apart = {"num_workers": 2, "persistent_workers": True, "multiprocessing_context": "spawn"} if workers else {}
    loader = DataLoader(tensors, batch_size=8, **apart)
    np.testing.assert_allclose(plane(js.Stream(loader)).loss, plane(DATA).loss, rtol=1e-12)
    with pytest.raises(ValueError, match="switch off shuffling"):
        plane(js.Stream(DataLoader(tensors, batch_size=8, shuffle=True)))


def test_a_torch_loader_of_bfloat16():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    x = torch.arange(8.0).to(torch.bfloat16).reshape(4, 2)
    objective = Objective.of(lambda p, b: p * b.sum(-1), np.float32(1), js.Stream([x, x]), check=False)
    assert objective.terms[0].data.dtype == jnp.bfloat16
    assert objective.examples == 8


@pytest.mark.parametrize("form", ["map", "iterable", "loader"])
def test_a_grain_loader(form):
    grain = pytest.importorskip("grain.python", reason="grain is not installed")
    rows = list(zip(*DATA, strict=True))
    if form == "loader":
        order = {"shard_options": grain.NoSharding(), "shuffle": False, "num_epochs": 1, "seed": 0}
        sampler = grain.IndexSampler(len(rows), **order)
        loader = grain.DataLoader(data_source=rows, sampler=sampler, operations=[grain.Batch(8)])
    else:
        loader = grain.MapDataset.source(rows)
        loader = (loader if form == "map" else loader.to_iter_dataset()).batch(8)
    np.testing.assert_allclose(plane(js.Stream(loader)).loss, plane(DATA).loss, rtol=1e-12)


def test_a_tensorflow_pipeline():
    tf = pytest.importorskip("tensorflow", reason="TensorFlow is not installed")
    pipeline = tf.data.Dataset.from_tensor_slices(DATA).batch(8)
    np.testing.assert_allclose(plane(js.Stream(pipeline)).loss, plane(DATA).loss, rtol=1e-12)


def test_no_warning_and_no_thread_is_left():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plane(js.Stream(cut(DATA, 8)))
    time.sleep(0.05)
    assert not [t for t in threading.enumerate() if t.name == "jaxscape-stream"]


def test_what_several_processes_cannot_share(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(TypeError, match="data is a js.Stream, but several processes would share the points of a map"):
        _map._groups(PARAMS, js.Stream(cut(DATA, 8)), None)


def test_two_processes_with_the_same_batches(monkeypatch):
    (term,) = Objective.of(mlp_loss, PARAMS, js.Stream(cut(DATA, 8)), check=False).terms
    monkeypatch.setattr(_passes, "gather", lambda own: np.stack([own, own]))
    with pytest.raises(ValueError, match="data has the same batches in several processes"):
        term.passes.totals  # noqa: B018


def test_statistics_take_examples_by_their_numbers():
    chart = None  # it is refused before anything else
    with pytest.raises(TypeError, match="statistics_data takes examples by their numbers"):
        _statistics.reestimated(lambda p, b: p, chart, js.Stream(cut(DATA, 8)), None)
