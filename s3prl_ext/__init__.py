"""s3prl_ext: merged upstreams, child-tuning and SUPERB task files as a plug-in for s3prl.

Importing this package changes nothing; :func:`install` puts the plug-in into s3prl, :func:`uninstall` takes it out.
The functions ``register_...`` add upstreams, tasks, model families and tuning methods.
"""

TYPE_CHECKING = False  # the start-up hook imports this package: not even typing is imported here
if TYPE_CHECKING:
    from s3prl_ext.extensions import (
        register_architecture,
        register_layout,
        register_method,
        register_task,
        register_tasks,
        register_upstream,
    )

__all__ = [
    "install", "register_architecture", "register_layout", "register_method", "register_task", "register_tasks",
    "register_upstream", "uninstall",
]  # fmt: skip

__version__ = "0.2.0.dev0"


def install() -> None:
    """Make s3prl run on today's libraries and give it the upstreams, tasks and Runner of this package.

    Calling it again does nothing.
    """
    from s3prl_ext import plugin

    plugin.install()


def uninstall() -> None:
    """Take the upstream names, tasks and Runner back out of s3prl; shims stay, imported modules hold them.

    What was registered is forgotten.
    """
    from s3prl_ext import plugin

    plugin.uninstall()


def __getattr__(name: str) -> object:
    """Take the functions that register something from :mod:`s3prl_ext.extensions` when they are asked for."""
    if name in __all__:
        from s3prl_ext import extensions

        return getattr(extensions, name)
    raise AttributeError(f"module 's3prl_ext' has no attribute '{name}'")
