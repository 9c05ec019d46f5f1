"""The path of training while it is walked: a record every few steps, in a loop of the user's own."""

import operator
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jax.sharding import NamedSharding
from jaxtyping import PRNGKeyArray

from jaxscape import checks, trees
from jaxscape.arguments import checked
from jaxscape.objective import fetch, refuse_inside_transform
from jaxscape.shards import Columns, key_words, mesh_of_shards, put, specs_of, within
from jaxscape.trajectories._compressed import difference, projections, restored
from jaxscape.trajectories._records import Folder, Memory, Record
from jaxscape.types import Params

Keep = Literal["differences", "projections"]
_MISSING = (
    "step is missing: the folder has records up to step {}; pass the number of the step, e.g. recorder(params, "
    "step=step)."
)
_VARIABLES = ("step", "distance", "coordinates", "component", "explained_variance_ratio")


class Recorder(Sequence[Params]):
    """The path of a training loop of your own, recorded while it runs, in little memory.

    Call it after each step. Every ``every`` steps it keeps a record; the other calls return at once. Records are made
    on the devices and moved to the host, so the loop may donate its params to the next step.

    With ``keep="differences"`` the recorder is a sequence of params, which `trajectory`, `pca_directions` and `project`
    take as checkpoints. Each record takes 2 bytes for each parameter, in the memory of the host or in ``folder``. The
    difference from the first params is kept in float16, each leaf divided by a power of two: an entry of the difference
    is wrong by at most 2**-11 of itself or 2**-24 of the largest entry of its leaf. Pass the trained params themselves
    as ``origin``: then the center of the picture is exact.

    With ``keep="projections"`` a record takes ``num_projections`` numbers, whatever the size of the model: each entry
    of the difference, with a random sign, is added to one of so many sums. `dataset` makes the path in principal
    coordinates of it, each squared distance with a standard error of ``sqrt(2 / num_projections)`` of itself (Charikar,
    Chen and Farach-Colton 2002). Such a recorder has no params to draw a surface with.

    >>> import jax.numpy as jnp
    >>> params = {"w": jnp.zeros(3)}
    >>> recorder = Recorder(params, every=2)
    >>> for step in range(1, 5):
    ...     params = {"w": params["w"] + jnp.array([1.0, 0.0, 0.5])}
    ...     _ = recorder(params, loss=1 / step)
    >>> len(recorder), recorder.steps, recorder[-1]["w"].tolist()
    (3, [0, 2, 4], [4.0, 0.0, 2.0])
    >>> recorder.dataset().distance.values.round(3).tolist(), recorder.dataset().loss.values.tolist()
    ([0.0, 2.236, 4.472], [nan, 0.5, 0.25])

    Attributes:
        every: How many steps lie between two records.
        keep: What is kept of the params.
    """

    @checked
    def __init__(
        self,
        params: Params,
        *,
        every: int = 1,
        keep: Keep = "differences",
        num_projections: int = 4096,
        measures: Mapping[str, Callable[[Params], Any]] | None = None,
        on_record: Callable[[int, Mapping[str, float]], Any] | None = None,
        folder: str | os.PathLike[str] | None = None,
        key: PRNGKeyArray | int = 0,
    ) -> None:
        """Begin a path; the first record is that of ``params``, at step 0.

        Args:
            params: The first params, any pytree of floating arrays, cut over devices or whole. The devices keep a copy.
            every: How many steps lie between two records, at least 1.
            keep: ``"differences"`` from the first params, in 16 bits, or random ``"projections"`` of them.
            num_projections: How many projections; used with ``keep="projections"`` alone.
            measures: Numbers to take of the params at each record, ``{"name": function(params)}``, for example
                ``{"lambda_max": lambda p: js.extreme_eigenvalues(p, loss_fn, data).max_eigenvalue}``. They take their
                time in each recorded step.
            on_record: ``on_record(step, values)`` is called with each record's numbers, a dict of floats with the
                ``distance`` among them, by the first process alone.
            folder: Where records are kept in place of memory. They survive a crash: open the folder again with params
                like the first ones, and go on with ``step=``; a step that was there before, and all after it, are
                replaced.
            key: A JAX random key, or an integer seed, of the projections.

        Raises:
            ValueError: ``every`` or ``num_projections`` is less than 1, ``keep`` is unknown, a measure has a reserved
                name, or the folder holds a path of other params or is damaged.
            TypeError: A leaf of params is not floating, a measure is no function, or it is inside a JAX transform.
        """
        refuse_inside_transform("js.Recorder")
        self.every, self.keep = int(every), keep
        self._measures = dict(measures or {})
        for name, function in self._measures.items():
            if not callable(function):
                raise TypeError(f"measures[{name!r}] is {type(function).__name__}, expected a function of params.")
            if name in _VARIABLES:
                raise ValueError(
                    f"measures has the name {name!r}, which each record has itself; expected another name."
                )
        self._on_record, self._num = on_record, int(num_projections)
        start = checks.as_params(params)
        self._mesh, self._specs = mesh_of_shards(start), specs_of(start)
        self._start = jax.tree.map(jnp.copy, self._placed(start))
        leaves = jax.tree.leaves(self._start)
        self._columns = Columns(leaves, self._mesh)
        self._words = key_words(jax.random.split(checks.as_key(key), len(leaves)))
        self._records: Memory | Folder = Memory()
        if folder is not None:
            self._records = Folder(Path(folder), self._recipe(key))
            kept = self._records.start(lambda: self._columns.row(leaves, np.float64))
            self._start = jax.tree.unflatten(jax.tree.structure(start), self._of_start(kept))
        self._is_reopened = len(self._records) > 0
        self._count = self._records[-1].step if self._is_reopened else 0
        if not self._is_reopened:
            self._add(self._taken(0, self._start, {}))

    @property
    def steps(self) -> list[int]:
        """The steps of training of the records."""
        return [step for step, _ in self._records.numbers()]

    def __call__(self, params: Params, *, step: int | None = None, **values: Any) -> bool:
        """Record the params after a step, if it is one of every ``every``.

        Args:
            params: The params after the step, like the first ones.
            step: The number of the step; None: one more than at the last call.
            **values: Numbers of this step, for example its loss; they are read from the devices at a record alone.

        Returns:
            Whether it was recorded.

        Raises:
            ValueError: Params are not like the first ones, the step is not after the last one, a value has the name of
                a measure or of a variable of `dataset`, or a folder with records was opened and the step is not given.
            TypeError: A value, or what a measure returned, is no number.
        """
        number = self._number_of(step)
        record = None if number % self.every else self._record(number, params, values)
        if self._is_reopened:
            self._records.drop(sum(kept < number for kept in self.steps))
        self._is_reopened, self._count = False, number
        if record is not None:
            self._add(record)
        return record is not None

    def finish(self, params: Params, **values: Any) -> None:
        """Record the params after the last step of the training, if that was not recorded.

        Args:
            params: The params after the last call's step.
            **values: Numbers of this step.

        Raises:
            ValueError: As a call.
            TypeError: As a call.
        """
        if self._is_reopened:
            raise ValueError(f"{_MISSING.format(self._count)}")
        if self._count > self._records[-1].step:
            self._add(self._record(self._count, params, values))

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: Any) -> Any:
        if self.keep != "differences":
            raise TypeError(
                "this Recorder has keep='projections', of which no params can be made; see `dataset`, or record with "
                "keep='differences'."
            )
        places = range(len(self))[index]
        return self._point(places) if isinstance(places, int) else [self._point(i) for i in places]

    def __repr__(self) -> str:
        steps = self.steps
        return f"Recorder({len(steps)} records of steps 0 to {steps[-1]}, every={self.every}, keep={self.keep!r})"

    def dataset(self) -> xr.Dataset:
        """What was recorded, but for the params.

        Returns:
            A Dataset over ``step``: ``distance``, ``norm(theta - theta_0)`` from the first params, in parameter space,
            summed in float64; every number of a step and every measure, NaN where a record has none. With projections,
            ``coordinates`` ``(step, component)`` are the path's first two principal coordinates, with the last record
            at 0, and ``explained_variance_ratio`` ``(component,)`` their shares, both estimated:
            ``attrs["relative_stderr"]`` is the standard error of a squared distance over the squared distance.
            ``attrs["nonfinite_steps"]`` counts the records that are not finite; the coordinates leave them out.
        """
        steps, values = zip(*self._records.numbers(), strict=True)
        names = dict.fromkeys(name for each in values for name in each)
        variables: dict[str, Any] = {
            name: ("step", np.array([each.get(name, np.nan) for each in values])) for name in names
        }
        distance = variables["distance"][1]
        variables["distance"] = ("step", distance, {"long_name": "distance from the first params"})
        attrs: dict[str, Any] = {"nonfinite_steps": int(np.sum(~np.isfinite(distance)))}
        if self.keep == "projections":
            rows = np.array([record.row for record in self._records], np.float64)
            coordinates, shares = _principal_coordinates(rows, np.isfinite(distance))
            variables["coordinates"] = (("step", "component"), coordinates, {"long_name": "principal coordinates"})
            variables["explained_variance_ratio"] = ("component", shares)
            attrs["relative_stderr"] = float(np.sqrt(2 / self._num))
        return xr.Dataset(variables, {"step": list(steps)}, attrs)

    def _number_of(self, step: int | None) -> int:
        """The number of the step of a call."""
        if self._is_reopened and step is None:
            raise ValueError(_MISSING.format(self._count))
        step = self._count + 1 if step is None else operator.index(step)
        if self._is_reopened:
            if step < 1:
                raise ValueError(f"step is {step}, expected at least 1: the first params have step 0.")
        elif step <= self._count:
            raise ValueError(f"step is {step}, expected one after the last, which was {self._count}.")
        return step

    def _record(self, step: int, params: Params, values: Mapping[str, Any]) -> Record:
        """The record of a step, checked; nothing is kept yet."""
        refuse_inside_transform("js.Recorder")
        point = self._placed(checks.like(self._start, checks.as_params(params), "params"))
        names = [*values, *self._measures]
        taken = next((name for name in names if name in _VARIABLES or names.count(name) > 1), None)
        if taken:
            raise ValueError(f"{taken!r} is the name of a measure or of a variable of a record; expected another name.")
        measured = {name: measure(point) for name, measure in self._measures.items()}
        numbers = {name: _as_number(value, name) for name, value in {**values, **measured}.items()}
        return self._taken(step, point, numbers)

    def _taken(self, step: int, point: Params, values: dict[str, float]) -> Record:
        with within(self._mesh):
            if self.keep == "differences":
                leaves, *numbers = difference(point, self._start)
                row, (scales, distance) = self._columns.row(leaves, np.float16), fetch(numbers)
            else:
                row, distance = fetch(projections(point, self._start, self._words, self._specs, self._num))
                scales = np.ones(0, np.float32)
        values = {"distance": float(distance), **values}
        return Record(step, row, scales, values)

    def _add(self, record: Record) -> None:
        self._records.append(record)
        if self._on_record is not None and jax.process_index() == 0:
            self._on_record(record.step, dict(record.values))

    def _recipe(self, key: PRNGKeyArray | int) -> dict[str, Any]:
        """What the records of a folder rest on."""
        leaves = zip(trees.leaf_names(self._start), jax.tree.leaves(self._start), strict=True)
        recipe: dict[str, Any] = {
            "keep": self.keep,
            "leaves": {name: [list(leaf.shape), str(leaf.dtype)] for name, leaf in leaves},
            "cut": [str(spec) for spec in self._specs] if self._mesh is not None else [],
            "mesh": dict(self._mesh.shape) if self._mesh is not None else {},
            "processes": jax.process_count(),
        }
        if self.keep == "projections":
            data = np.asarray(jax.random.key_data(checks.as_key(key)))
            recipe |= {"num_projections": self._num, "key": data.tolist()}
        return recipe

    def _of_start(self, row: np.ndarray) -> list[jax.Array]:
        """The leaves of the first params of a folder."""
        pairs = zip(self._columns.arrays(row), jax.tree.leaves(self._start), strict=True)
        return [x.astype(like.dtype) for x, like in pairs]

    def _point(self, index: int) -> Params:
        record = self._records[index]
        with within(self._mesh):
            return self._placed(restored(self._start, self._columns.arrays(record.row), record.scales))

    def _placed(self, params: Params) -> Params:
        """Params cut as the first ones."""
        if self._mesh is None:
            return params
        pairs = zip(jax.tree.leaves(params), self._specs, strict=True)
        leaves = [put(x, NamedSharding(self._mesh, spec)) for x, spec in pairs]
        return jax.tree.unflatten(jax.tree.structure(params), leaves)


def _principal_coordinates(rows: np.ndarray, finite: np.ndarray, num: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """The coordinates of rows along their first principal components, with the last finite row at 0, and the shares."""
    if not finite.any():
        return np.full((len(rows), num), np.nan), np.full(num, np.nan)
    moves = rows[finite] - rows[finite][-1]
    squares, vectors = np.linalg.eigh(moves @ moves.T)
    squares, vectors = np.maximum(squares[::-1][:num], 0), vectors[:, ::-1][:, :num]
    signs = np.sign(vectors[np.abs(vectors).argmax(0), np.arange(vectors.shape[1])])
    coordinates, shares = np.full((len(rows), num), np.nan), np.zeros(num)
    coordinates[finite] = 0
    coordinates[np.ix_(finite, np.arange(len(squares)))] = vectors * signs * np.sqrt(squares)
    total = np.sum(moves**2)
    shares[: len(squares)] = squares / total if total > 0 else 0
    return coordinates, shares


def _as_number(value: Any, name: str) -> float:
    """A value as a float."""
    array = np.asarray(fetch(value) if isinstance(value, jax.Array) else value)
    kinds = (jnp.floating, jnp.integer, jnp.bool_)
    if array.shape != () or not any(jnp.issubdtype(array.dtype, kind) for kind in kinds):
        raise TypeError(f"{name} is {array.dtype} of shape {array.shape}, expected one real number.")
    return float(array)
