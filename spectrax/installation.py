"""The installation: warns when another distribution has put its own `spectrax` package into the same environment."""

import functools
import warnings
from importlib import metadata

DISTRIBUTION = "jax-spectrax"

# Distributions known to install a top-level package of our name. They are looked up by name, which costs one listing of
# each folder on the path; asking every installed distribution for its packages would cost a good part of a second.
RIVALS = ("spectrax", "spectrax-lib")


class NameCollisionWarning(UserWarning):
    """Another distribution that installs a package called `spectrax` stands beside this one."""


def rival_distributions() -> tuple[str, ...]:
    """Return the installed distributions, other than ours, that provide a package called `spectrax`.

    Returns:
        One entry "name version" for each that was found, in the order of `RIVALS`.

    Example:
        >>> all(rival.startswith("spectrax") for rival in rival_distributions())
        True
    """
    found = []
    for name in RIVALS:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    return tuple(found)


@functools.cache
def warn_if_shadowed() -> None:
    """Warn, once in a process, when another distribution provides a package called `spectrax`.

    Both are unpacked into the same folder, so that whichever was installed last has overwritten files of the other, and
    removing one of them removes files that both need. Called when `spectrax` is imported.

    Example:
        >>> import warnings
        >>> with warnings.catch_warnings():
        ...     warnings.simplefilter("ignore")
        ...     warn_if_shadowed()
    """
    rivals = rival_distributions()
    if not rivals:
        return
    names = " ".join(rival.split()[0] for rival in rivals)
    # Level 3 is the user's own import statement: this function, spectrax/__init__.py, then whoever imports it.
    warnings.warn(
        f"{DISTRIBUTION} shares the package name 'spectrax' with {' and '.join(rivals)}, also installed here: the last "
        f"one installed has overwritten files of the other, and imports may fail or mix the two. Keep them in separate "
        f"environments, or run: pip uninstall {names} {DISTRIBUTION}, and install {DISTRIBUTION} again",
        NameCollisionWarning,
        stacklevel=3,
    )
