"""The user's ambient mesh (`jax.set_mesh`): programs of jaxscape run outside of it, on meshes of their own."""

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh

P = ParamSpec("P")
R = TypeVar("R")

_NO_MESH = AbstractMesh((), ())
_users_mesh: contextvars.ContextVar[AbstractMesh] = contextvars.ContextVar("users_mesh", default=_NO_MESH)


def users_mesh() -> AbstractMesh:
    """The mesh that the user has set around the public call that is under way; empty where there is none."""
    return _users_mesh.get()


def outside_meshes(function: Callable[P, R]) -> Callable[P, R]:
    """Run a public function outside of the ambient mesh (`jax.set_mesh`): its programs have meshes of their own.

    Args:
        function: Any function. A function of the user that it traces may still use the ambient mesh.

    Returns:
        The function.
    """

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        with without_mesh():
            return function(*args, **kwargs)

    return wrapped


@contextlib.contextmanager
def without_mesh() -> Iterator[None]:
    """Outside of the user's mesh, for what follows."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        yield
        return
    token = _users_mesh.set(mesh)
    try:
        with _no_mesh():
            yield
    finally:
        _users_mesh.reset(token)


def _no_mesh() -> Any:
    try:
        return jax.set_mesh(Mesh(np.empty((), object), ()))
    except ValueError:  # inside jax.jit, where only the abstract mesh can be set
        return jax.sharding.use_abstract_mesh(_NO_MESH)
