"""What a run leaves behind, for each kind of training; the command line of a training."""

import itertools

import jax
import numpy as np
import pytest

import jaxscape as js
import train
from jaxscape import datasets, runs, trees
from tests.problems import slow_but, slow_unless
from tests.test_datasets import random_batches, write_binary
from tests.training import NETWORK, OPTIONS, config, same
from training.presets import PRESETS


@pytest.mark.slow
def test_a_path_ends_at_the_runs_final_loss(run):
    ds = js.trajectory(run, points=3, progress=False)
    np.testing.assert_array_equal(ds.epoch, [0, 1, 2, 3])
    np.testing.assert_allclose(ds.true_loss, [row["train_loss"] for row in run.metrics], rtol=1e-5)  # own statistics
    np.testing.assert_allclose(ds.in_plane_loss[-1], run.metrics[-1]["train_loss"], rtol=1e-5)
    np.testing.assert_allclose(ds.loss.interp(alpha=0, beta=0), run.metrics[-1]["train_loss"], rtol=1e-5)
    drops = [row["epoch"] for row, after in itertools.pairwise(run.metrics) if after["lr"] < row["lr"] and row["epoch"]]
    np.testing.assert_array_equal(ds.epoch[ds.lr_drop], drops)


@pytest.mark.slow
def test_a_path_of_params_and_batch_statistics(run):
    ds, whole = (js.trajectory(run, points=3, batch_stats=b, progress=False) for b in (False, True))
    assert whole.attrs["num_params"] == trees.size(run.variables) > ds.attrs["num_params"]
    np.testing.assert_allclose(whole.true_loss, ds.true_loss, rtol=1e-6)


def test_metrics_config_and_checkpoints(run):
    assert [row["epoch"] for row in run.metrics] == [0, 1, 2, 3]
    assert run.metrics[-1]["train_loss"] < run.metrics[0]["train_loss"]
    assert run.checkpoints.epochs == (0, 1, 2, 3)
    assert len(run.checkpoints) == 4
    assert run.config["arch"] == "tiny"
    assert "jax" in run.config["versions"]
    same(run.checkpoints[-1], run.params)
    assert len(run.checkpoints[1:]) == len(list(run.checkpoints)[1:]) == 3
    initial = runs.build_model(run.config, run.data)
    np.testing.assert_array_equal(run.checkpoints[0]["head"]["kernel"], initial.head.kernel[...])


@pytest.mark.slow
def test_the_center_of_the_surface_is_the_runs_final_loss(run):
    for split, data in (("train", run.data), ("test", run.test_data)):
        ds = js.surface(run.params, run.loss_fn, data, grid=js.Grid.plane((0, 1, 2), (0, 1, 2)), progress=False)
        last = run.metrics[-1]
        np.testing.assert_allclose(ds.loss[0, 0], last[f"{split}_loss"], rtol=1e-6)
        np.testing.assert_allclose(100 * (1 - ds.accuracy[0, 0]), last[f"{split}_error"], rtol=1e-12, atol=1e-12)
        assert ds.attrs["center_loss"] == float(ds.loss[0, 0])


@pytest.mark.slow
def test_each_architecture_trains_and_is_found_at_the_center(tmp_path):
    options = config(noshort=True, optimizer="adam", epochs=1, batch_size=2000)
    run = train.train(options, tmp_path / "run", progress=False)
    assert "shortcut" not in run.params["stage2_block1"]
    ds = js.surface(run.params, run.loss_fn, run.data, grid=js.Grid.line(0, 1, 2), progress=False)
    np.testing.assert_allclose(ds.loss[0], run.metrics[-1]["train_loss"], rtol=1e-6)


@pytest.mark.slow
def test_batch_statistics_are_fixed_or_take_part(run):
    other = jax.tree.map(lambda x: 2 * x, run.variables)
    line = js.interpolate(run.variables, other, run.loss_fn, run.test_data, grid=js.Grid.line(0, 1, 2), progress=False)
    np.testing.assert_allclose(line.loss[0], run.metrics[-1]["test_loss"], rtol=1e-6)
    np.testing.assert_allclose(line.loss[1], np.mean(run.loss_fn(other, run.test_data)["loss"]), rtol=1e-5)
    fixed = js.interpolate(run.params, other_params := jax.tree.map(lambda x: 2 * x, run.params), run.loss_fn,
                           run.test_data, grid=js.Grid.line(0, 1, 2), statistics="frozen", progress=False)  # fmt: skip
    np.testing.assert_allclose(fixed.loss[1], np.mean(run.loss_fn(other_params, run.test_data)["loss"]), rtol=1e-5)
    assert not np.allclose(fixed.loss[1], line.loss[1])


def test_weight_norms_are_kept(run):
    rows = runs.read_table(run.path / "weight_norms.csv")
    assert [row["epoch"] for row in rows] == [0, 1, 2, 3]
    leaves = [np.asarray(x, np.float64) for x in jax.tree.leaves(run.params)]
    np.testing.assert_allclose(rows[-1]["all"], np.sqrt(sum((x**2).sum() for x in leaves)), rtol=1e-6)
    assert len(rows[-1]) == 2 + len(leaves)
    kernel = next(name for name in rows[-1] if "head" in name and "kernel" in name)
    np.testing.assert_allclose(rows[-1][kernel], np.linalg.norm(run.params["head"]["kernel"]), rtol=1e-6)


@pytest.mark.parametrize("rate", slow_but([None], [None, "1e30"]))
def test_divergence_names_the_last_good_checkpoint(tmp_path, monkeypatch, capsys, rate):
    def broken(state, *_):  # without 10 s of compilation
        return state._replace(params=jax.tree.map(lambda x: x * np.nan, state.params))

    if rate is None:
        monkeypatch.setattr(train, "make_step", lambda *_: broken)
    options = [*NETWORK, "--epochs", "3", "--lr", rate or "0.1", "--batch-size", "700"]
    assert train.main([*options, "--out", str(tmp_path / "run")]) == 3
    message = capsys.readouterr().err
    assert "diverged: a weight became NaN or infinite in epoch 1. The last good checkpoint, of epoch 0" in message
    assert js.load_run(tmp_path / "run").checkpoints.epochs == (0,)
    assert [row["epoch"] for row in js.load_run(tmp_path / "run").metrics] == [0, 1]


@pytest.mark.slow
def test_label_noise_is_in_the_training_labels_and_stays(tmp_path):
    options = config(epochs=1, batch_size=2000, label_noise=0.5, seed=3)
    run = train.train(options, tmp_path / "run", progress=False)
    clean, test = datasets.load("digits")
    assert 0.4 < np.mean(run.data.labels != clean.labels) < 0.5  # a tenth of the random labels are right
    np.testing.assert_array_equal(run.test_data.labels, test.labels)
    np.testing.assert_array_equal(run.data.labels, js.load_run(tmp_path / "run").data.labels)


@pytest.mark.slow
def test_cifar_files_train_and_are_found_at_the_center(tmp_path, capsys):
    write_binary("cifar10", tmp_path, random_batches("cifar10"))
    options = [*NETWORK, "--dataset", "cifar10-files", "--data-dir", str(tmp_path), "--loss", "mse"]
    assert train.main([*options, "--epochs", "1", "--batch-size", "64", "--out", str(tmp_path / "run")]) == 0
    run = js.load_run(tmp_path / "run")
    assert run.data.images.dtype == np.uint8
    ds = js.surface(run.params, run.loss_fn, run.data, grid=js.Grid.line(0, 1, 2), progress=False)
    np.testing.assert_allclose(ds.loss[0], run.metrics[-1]["train_loss"], rtol=1e-6)


def test_presets_are_listed_and_take_options(tmp_path, capsys):
    assert train.main(["--preset", "paper-table1", "--list", "--out", str(tmp_path), "--epochs", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(set(lines)) == 8
    assert all(line.endswith(": not begun") for line in lines)
    runs_of_preset, *_ = train.parse(["--preset", "paper-table2", "--dataset", "digits"])
    assert [config.dataset for config, _ in runs_of_preset] == ["digits"] * 7
    assert len({path for _, path in runs_of_preset}) == 7
    assert {config.batch_size for config in PRESETS["paper-fig2"]} == {128, 8192}


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"arch": "resnet57"}, "arch is 'resnet57', expected one of resnet20"),
        ({"dataset": "mnist"}, "dataset is 'mnist', expected one of digits"),
        ({"optimizer": "lion"}, "optimizer is 'lion', expected one of sgd, adam"),
        ({"loss": "hinge"}, "loss is 'hinge', expected one of crossentropy, mse"),
        ({"precision": "float16"}, "precision is 'float16', expected one of float32, bfloat16"),
        ({"epochs": 0}, "epochs is 0, expected at least 1"),
        ({"accumulate": 0}, "accumulate is 0, expected at least 1"),
        ({"save_steps": -1}, "save_steps is -1, expected at least 0"),
        ({"steps_dtype": "int8"}, "steps_dtype is .int8., expected one of float32, float16, bfloat16"),
        ({"epochs": 5, "warmup": 5}, "warmup is 5, expected less than the 5 epochs"),
        ({"label_noise": 1.5}, "label_noise is 1.5, expected a share from 0 to 1"),
    ],
)
def test_bad_configs(options, match):
    with pytest.raises(ValueError, match=match):
        train.Config(**options)


MALFORMED = [
    *(["--lr", v] for v in ("nan", "-1", "inf", "x", "")),
    *(["--weight-decay", v] for v in ("nan", "-1", "x")),
    *(["--momentum", v] for v in ("nan", "-1", "1.5", "x")),
    *(["--epochs", v] for v in ("0", "-1", "1.5", "x")),
    *(["--batch-size", v] for v in ("0", "-1", "x")),
    *(["--width", v] for v in ("0", "x")),
    *(["--label-noise", v] for v in ("-0.1", "2", "x")),
    *(["--accumulate", v] for v in ("0", "x")),
    *(["--save-every", v] for v in ("0", "x")),
    *(["--save-steps", v] for v in ("-1", "x")),
    *(["--warmup", v] for v in ("-1", "1000", "x")),
    *(["--seed", v] for v in ("x", "1.5")),
    *(
        [name, "x"]
        for name in ("--arch", "--dataset", "--loss", "--optimizer", "--precision", "--preset", "--steps-dtype")
    ),
    *(["--builder", v] for v in ("x", "no.module:f", "math:no_function")),
    ["--dataset", "cifar10-files", "--data-dir", "{missing}"],
    ["--dataset", "cifar10-files", "--data-dir", "{file}"],
    ["--x"],
    ["extra"],
]


@pytest.mark.parametrize("arguments", [slow_unless(i % 3 == 0, line) for i, line in enumerate(MALFORMED)], ids=" ".join)
def test_a_malformed_command_line_is_one_line(tmp_path, capsys, arguments):
    (tmp_path / "file").write_text("text")
    arguments = [argument.format(missing=tmp_path / "missing", file=tmp_path / "file") for argument in arguments]
    try:
        status = train.main([*arguments, "--out", str(tmp_path / "run")])
    except SystemExit as end:  # argparse
        status = end.code
    err = capsys.readouterr().err
    assert status == 2
    assert "error: " in err.splitlines()[-1]
    assert err.startswith("usage: ") or len(err.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_the_command_trains_and_tells_what_to_do_next(run, copy, capsys):
    assert train.main([*OPTIONS, "--out", str(copy), "--resume"]) == 0
    assert f"jaxscape surface {copy}" in capsys.readouterr().out
    assert train.main([*OPTIONS, "--out", str(copy)]) == 2
    assert capsys.readouterr().err.startswith("train.py: error: out is ")
    assert train.main(["--arch", "alexnet", "--out", str(copy)]) == 2
    assert "arch is 'alexnet', expected one of resnet20" in capsys.readouterr().err


def test_default_folder():
    [(config, out)], flags = train.parse(["--arch", "resnet20", "--noshort"])
    assert (config.noshort, str(out), flags) == (True, "runs/resnet20_noshort_digits", set())
    assert train.parse(["--distributed", "--resume"])[1] == {"distributed", "resume"}
    [(_, out)], *_ = train.parse(["--lr", "0.05", "--no-decay-norm", "--save-every", "3"])
    assert str(out) == "runs/resnet56_digits_lr=0.05_decay_norm=False"


def test_distributed_finds_its_peers_first(monkeypatch, tmp_path, capsys):
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda: calls.append(1))
    assert train.main(["--distributed", "--list", "--out", str(tmp_path / "run")]) == 0
    assert calls == [1]
    assert "not begun" in capsys.readouterr().out
