"""Using tuned tasks: switching several of them on one upstream, and writing them into plain models.

::

    switch = TaskSwitch(upstream, {"ks": "exp/ks/delta.safetensors", "asr": "exp/asr/delta.safetensors"})
    switch.switch("ks")
"""

from s3prl_ext.deltas.switch import TaskSwitch
from s3prl_ext.deltas.trained_task import TrainedTask

__all__ = ["TaskSwitch", "TrainedTask"]
