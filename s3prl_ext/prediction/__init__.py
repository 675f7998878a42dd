"""Using what was trained: predictions for audio of any kind.

::

    from s3prl_ext.prediction import load

    model = load("exp/ks")
    print(model.predict("clip.wav"))
"""

from s3prl_ext.prediction.model import Model, load

__all__ = ["Model", "load"]
