"""Compiled programs that outlive a process: JAX's persistent cache, for the commands."""

import hashlib
import os
import platform
from pathlib import Path

import jax

LARGEST = 2**30  # bytes of the folder; what was used longest ago goes first
WORTH = 0.02  # seconds of compilation that are worth a file


def keep_compiled_programs() -> None:
    """Keep compiled programs in the user's cache folder: a command that runs again compiles nothing.

    Settings of the user stay: ``JAX_COMPILATION_CACHE_DIR`` names another folder, and
    ``JAX_ENABLE_COMPILATION_CACHE=false`` switches the cache off. A folder that cannot be written is not used. Machines
    that share a home have folders of their own, since a program may use what the other processor lacks.
    """
    config = jax.config
    if config.jax_compilation_cache_dir is not None or not config.jax_enable_compilation_cache:  # type: ignore[attr-defined]
        return
    from platformdirs import user_cache_path

    folder = user_cache_path("jaxscape") / f"programs-{_processor()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return
    if os.access(folder, os.W_OK):
        config.update("jax_compilation_cache_dir", str(folder))
        config.update("jax_compilation_cache_max_size", LARGEST)
        config.update("jax_persistent_cache_min_compile_time_secs", WORTH)


def _processor() -> str:
    """A digest of what the processor can do."""
    known = Path("/proc/cpuinfo")
    lines = known.read_text().splitlines() if known.exists() else []
    able = next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
    return hashlib.blake2b(f"{platform.machine()} {able}".encode(), digest_size=6).hexdigest()
