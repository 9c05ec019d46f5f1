"""The folder of a run: what is damaged is found and named, one training at a time, options that cannot be trained."""

import json
import shutil
import warnings

import jax
import numpy as np
import pytest

import jaxscape as js
import train
from jaxscape import runs
from jaxscape.files import FolderLock
from tests.damage import KINDS, damages, files_of
from tests.problems import slow_unless
from tests.training import CONFIG, OPTIONS, config, same
from training.folder import RunFolder
from training.step import TrainState

HEAD = {"epoch": 1, "lr": 0.5}


# ---- tables


@pytest.mark.parametrize(
    ("text", "rows", "line"),
    [
        ("epoch,lr\n1,0.5\n2,0.5\n", 2, None),
        ("epoch,lr\n1,0.5\n2,0.5", 1, 3),  # 0.5 may have been 0.53
        ("epoch,lr\n1,0.5\n2,\n", 1, 3),
        ("epoch,lr\n1,0.5\n2,0.5,7\n", 1, 3),
        ("epoch,lr\n1,0.5\n1,0.4\n", 1, 3),  # of two trainings
        ("epoch,lr\n1,0.5\nx,0.4\n2,0.5\n", 2, 3),
        ("epoch,lr\n1,0.5\n\x00\x00\n", 1, 3),
        ("epoch,l", 0, 1),
        ("lr\n0.5\n", 0, 2),
        ("", 0, None),
    ],
)
def test_a_table_is_what_is_whole_of_it(tmp_path, text, rows, line):
    (tmp_path / "t.csv").write_text(text)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = runs.read_table(tmp_path / "t.csv")
    assert result == [HEAD, {"epoch": 2, "lr": 0.5}][:rows]
    assert [f"the first is line {line}." in str(warning.message) for warning in caught] == [True] * (line is not None)


@pytest.mark.filterwarnings("default")
def test_list_and_report_bear_a_cut_table(copy, capsys):
    (copy / "metrics.csv").write_text((copy / "metrics.csv").read_text()[:-5])
    assert train.main([*OPTIONS, "--out", str(copy), "--list"]) == 0
    out, err = capsys.readouterr()
    assert "epoch   2/3" in out
    assert err.splitlines() == [
        f"train.py: warning: {copy}/metrics.csv: 1 lines are cut or damaged and left out, the first is line 5."
    ]


# ---- checkpoints


def state_of(run):
    """A state like that of the run's training, of zeros."""
    zeros = jax.tree.map(np.zeros_like, (run.params, run.batch_stats))
    optimizer = train.make_optimizer(CONFIG, 6)
    return TrainState(*zeros, optimizer.init(zeros[0]))


def restored(path, state):
    with RunFolder(path, CONFIG, resume=True) as folder:
        return folder.restore(state)


@pytest.mark.parametrize(
    ("kind", "start"), [slow_unless(i == j < 2, k, j) for i, k in enumerate(KINDS) for j in range(5)]
)
def test_damage_is_never_a_wrong_weight(run, copy, tmp_path, kind, start):
    """Each file of the newest checkpoint: what is restored and loaded is whole, or the checkpoint is named."""
    shutil.rmtree(copy / "checkpoints" / "0")
    shutil.rmtree(copy / "checkpoints" / "1")
    names = [*(f"checkpoints/3/{name}" for name in files_of(copy / "checkpoints" / "3")), "digests/checkpoints-3.json"]
    state = state_of(run)
    for name in names[start::5]:
        damaged = shutil.copytree(copy, tmp_path / "damaged")
        damages(damaged / name)[kind]()
        try:
            same(js.load_run(damaged).variables, run.variables)
        except ValueError as error:
            assert "checkpoints/3" in str(error)  # noqa: PT017  # most damage is found, some does not matter
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            epoch, result = restored(damaged, state)
        if epoch == 3:
            same({"params": result.params, "batch_stats": result.batch_stats}, run.checkpoints.variables(-1))
        else:
            assert epoch == 2
            same({"params": result.params, "batch_stats": result.batch_stats}, run.checkpoints.variables(2))
            assert any("checkpoints/3 is skipped, and moved to" in str(warning.message) for warning in caught)
            assert (damaged / "skipped" / "3").is_dir()
        shutil.rmtree(damaged)


def test_a_checkpoint_of_no_epoch_of_the_run_is_skipped(run, copy):
    shutil.copytree(copy / "checkpoints" / "3", copy / "checkpoints" / "99")
    with pytest.warns(UserWarning, match=r"checkpoints/99 is skipped, and moved to .*skipped: the run has 3 epochs"):
        epoch, _ = restored(copy, state_of(run))
    assert epoch == 3


def test_weights_of_another_checkpoint_are_not_taken(run, copy):
    shutil.rmtree(copy / "checkpoints" / "3")
    shutil.copytree(copy / "checkpoints" / "2", copy / "checkpoints" / "3")
    message = r"variables of .*checkpoints/3 is damaged: it does not have the digest in .*digests/checkpoints-3.json"
    with pytest.raises(ValueError, match=rf"{message}. `python train.py --resume`"):
        js.load_run(copy)


def test_runs_without_digests_are_read(run, copy):
    shutil.rmtree(copy / "digests")
    same(js.load_run(copy).variables, run.variables)


# ---- one training, with the options that it says


def test_two_trainings_are_refused(copy):
    with FolderLock(copy), pytest.raises(ValueError, match="copy is being written by process"):
        train.train(CONFIG, copy, resume=True)


def test_checkpoints_without_a_config_are_refused(copy):
    (copy / "config.json").unlink()
    for resume in (False, True):
        with pytest.raises(ValueError, match=r"copy, which has checkpoints but no config.json: nothing says what"):
            train.train(CONFIG, copy, resume=resume)


def test_an_interrupt_says_what_is_kept(copy, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    shutil.rmtree(copy / "checkpoints" / "3")
    monkeypatch.setattr(train, "make_step", lambda *_: interrupted)
    assert train.main([*OPTIONS, "--out", str(copy), "--resume"]) == 130
    line = (
        f"train.py: interrupted. {copy} keeps the checkpoints up to epoch 2. Go on with: python train.py --arch tiny "
    )
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith(line)
    assert message.endswith("--resume")
    assert not (copy / ".lock").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": float("nan")}, "lr is nan, expected a number of at least 0."),
        ({"lr": -1.0}, "lr is -1.0, expected a number of at least 0."),
        ({"lr": float("inf")}, "lr is inf, expected"),
        ({"weight_decay": float("nan")}, "weight_decay is nan, expected"),
        ({"momentum": 1.0}, "momentum is 1.0, expected a number of at least 0, below 1."),
    ],
)
def test_options_that_cannot_be_trained(options, message):
    with pytest.raises(ValueError, match=message):
        config(**options)


def test_the_digests_are_of_the_weights(run):
    digests = json.loads((run.path / "digests" / "checkpoints-3.json").read_text())
    assert set(digests) == {"variables", "optimizer"}
    others = json.loads((run.path / "digests" / "checkpoints-2.json").read_text())
    assert digests["variables"] != others["variables"]
