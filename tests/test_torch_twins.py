"""Every network against its PyTorch twin: sizes, logits, gradients, a training step; and weights read from files."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import models
from jaxscape import runs
from jaxscape.convolution import fast_convolutions

torch = pytest.importorskip("torch")
twins = pytest.importorskip("tests.torch_twins")
F = torch.nn.functional

RESIDUAL = [name for name in models.names() if name not in ("vgg9", "densenet121")]
CASES = [*((name, True) for name in models.names()), *((name, False) for name in RESIDUAL)]
SMALL = ("resnet20", "vgg9", "densenet121", "resnet50")


def twin_of(name, shortcuts, seed=0):
    """A PyTorch network with random weights and statistics, in float64."""
    torch.manual_seed(seed)
    net = twins.TWINS[name](**({} if shortcuts else {"shortcuts": False})).double()
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                for tensor, low in ((module.weight, 0.5), (module.running_var, 0.5), (module.bias, -0.2)):
                    tensor.uniform_(low, low + 1)
                module.running_mean.uniform_(-0.3, 0.3)
    return net


def imported(net, tmp_path, dtype):
    path = tmp_path / "weights.t7"
    torch.save({"acc": 0.0, "epoch": 3, "state_dict": net.state_dict()}, path)
    variables = runs.import_torch_state_dict(path)
    return jax.tree.map(lambda x: jnp.asarray(x, dtype), variables)


def same(result, expected, rtol):
    """Leaf by leaf, relative to the largest entry of the leaf."""
    assert jax.tree.structure(result) == jax.tree.structure(expected)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(result), jax.tree.leaves(expected), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert np.abs(a - b).max() <= rtol * max(np.abs(b).max(), 1e-6), jax.tree_util.keystr(path)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "shortcuts"), CASES)
def test_parameter_counts_of_the_twins(name, shortcuts):
    with torch.device("meta"):
        net = twins.TWINS[name](**({} if shortcuts else {"shortcuts": False}))
    ours = nnx.eval_shape(lambda: models.create(name, shortcuts=shortcuts))
    assert models.num_params(ours) == sum(p.numel() for p in net.parameters())


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "rtol"), [(jnp.float64, 1e-9), (jnp.float32, 1e-4)])
@pytest.mark.parametrize(("name", "shortcuts"), CASES)
def test_logits_in_evaluation_mode(name, shortcuts, dtype, rtol, tmp_path):
    net = twin_of(name, shortcuts).eval()
    images = np.random.default_rng(0).normal(size=(2, 32, 32, 3))
    graphdef, *state = nnx.split(models.create(name, shortcuts=shortcuts), nnx.Param, nnx.BatchStat)
    variables = imported(net, tmp_path, dtype)
    for have, name in zip(state, ("params", "batch_stats"), strict=True):
        assert jax.tree.map(jnp.shape, nnx.to_pure_dict(have)) == jax.tree.map(jnp.shape, variables[name])
    logits = nnx.merge(graphdef, variables["params"], variables["batch_stats"])(jnp.asarray(images, dtype))
    with torch.no_grad():
        net = net if dtype == jnp.float64 else net.float()
        theirs = net(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).to(next(net.parameters()).dtype)).numpy()
    assert logits.dtype == dtype
    assert np.abs(logits - theirs).max() <= rtol * np.abs(theirs).max()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "shortcuts"), [*((name, True) for name in SMALL), ("resnet20", False)])
def test_gradients_and_a_training_step(name, shortcuts, tmp_path):
    net = twin_of(name, shortcuts)
    images = np.random.default_rng(0).normal(size=(4, 32, 32, 3))
    labels = np.array([0, 3, 7, 3])
    variables = imported(net, tmp_path, jnp.float64)
    graphdef = nnx.graphdef(models.create(name, shortcuts=shortcuts))

    def loss(params, stats, train):
        model = nnx.merge(graphdef, params, stats)
        losses = optax.softmax_cross_entropy_with_integer_labels(model(jnp.asarray(images), train=train), labels)
        return losses.mean(), nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))

    def theirs(train):
        net.train(train)
        net.zero_grad()
        F.cross_entropy(net(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())), torch.tensor(labels)).backward()
        return {key: p.grad for key, p in net.named_parameters()}

    for train in (False, True):
        gradient = jax.jit(jax.grad(fast_convolutions(functools.partial(loss, train=train)), has_aux=True))
        optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
        gradients = theirs(train)
        grads, stats = gradient(variables["params"], variables["batch_stats"])
        torch.save(gradients, tmp_path / "gradients.t7")
        same(grads, runs.import_torch_state_dict(tmp_path / "gradients.t7")["params"], 1e-7)
    optimizer.step()
    rule = optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(0.1, 0.9, nesterov=True))
    updates, _ = rule.update(grads, rule.init(variables["params"]), variables["params"])
    after = imported(net, tmp_path, jnp.float64)
    same(optax.apply_updates(variables["params"], updates), after["params"], 1e-8)
    same(stats, after["batch_stats"], 1e-8)


def test_safetensors_and_prefixes(tmp_path):
    save_file = pytest.importorskip("safetensors.torch").save_file
    net = twin_of("resnet20", True)
    save_file({f"module.{name}": x for name, x in net.state_dict().items()}, tmp_path / "w.safetensors")
    from_file = runs.import_torch_state_dict(tmp_path / "w.safetensors")
    jax.tree.map(np.testing.assert_array_equal, from_file, imported(net, tmp_path, jnp.float64))


def test_mistakes_of_the_importer(tmp_path):
    path = tmp_path / "w.t7"
    with pytest.raises(FileNotFoundError, match=r"w\.t7 not found; expected a file of torch\.save or safetensors"):
        runs.import_torch_state_dict(path)
    path.write_bytes(b"no weights")
    with pytest.raises(ValueError, match="no file of weights that can be read safely"):
        runs.import_torch_state_dict(path)
    torch.save([torch.ones(2)], path)
    with pytest.raises(ValueError, match="holds list, expected a state dict"):
        runs.import_torch_state_dict(path)
    torch.save({"encoder.weight": torch.ones(2, 2)}, path)
    with pytest.raises(ValueError, match=r"'encoder\.weight' is in none of the paper's networks"):
        runs.import_torch_state_dict(path)
    torch.save({"features.0.gate": torch.ones(2, 2)}, path)
    with pytest.raises(ValueError, match=r"'features\.0\.gate' is no layer of vgg9"):
        runs.import_torch_state_dict(path)
    torch.save({"layer1.0.conv1.weight": torch.ones(2, 2, 2)}, path)
    with pytest.raises(ValueError, match=r"of shape \(2, 2, 2\) is neither a weight nor a statistic"):
        runs.import_torch_state_dict(path)
