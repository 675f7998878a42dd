"""s3prl_ext: merged upstreams, child-tuning and SUPERB task files as a plug-in for s3prl.

Importing this package changes nothing; :func:`install` puts the plug-in into s3prl, :func:`uninstall` takes it out.
"""

__version__ = "0.1.0"


def install() -> None:
    """Make s3prl run on today's libraries and give it the upstreams, tasks and Runner of this package.

    Calling it again does nothing.
    """
    from s3prl_ext import plugin

    plugin.install()


def uninstall() -> None:
    """Take the upstream names, tasks and Runner back out of s3prl; shims stay, imported modules hold them."""
    from s3prl_ext import plugin

    plugin.uninstall()
