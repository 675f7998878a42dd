"""An evaluation and a prediction with features that need no transformers import neither it nor torch's compiler."""

from __future__ import annotations

import json

import s3prl_ext
from tests.support import python_process
from tests.support.experiments import make_args, task_config

SCRIPT = """
import json, sys
from s3prl_ext import cli
heavy = ("transformers", "torch._dynamo")
def imported():
    return [name for name in heavy if name in sys.modules]
sys.argv = ["s3prl-ext", *{command}]
found = [cli.main({command}), imported(), cli.main(["predict", {folder!r}, {clip!r}]), imported()]
print(json.dumps(found))
"""


def test_an_evaluation_and_a_prediction_import_what_they_use(tmp_path, build, corpus_variables):
    s3prl_ext.install()
    folder = tmp_path / "exp"
    build(make_args(folder), task_config("ks", total_steps=1)).train()
    clip = next((corpus_variables / "speech_commands").rglob("*.wav"))
    command = ["run", "-m", "evaluate", "-e", str(folder / "states-1.ckpt"), "-t", "test"]
    script = SCRIPT.format(command=command, folder=str(folder / "states-1.ckpt"), clip=str(clip))
    done = python_process.run(tmp_path, "-c", script)
    assert json.loads(done.stdout.splitlines()[-1]) == [0, [], 0, []], done.stdout
    assert (folder / "result-test.json").is_file()
