"""The start-up hook: cheap, silent, waiting for s3prl; and the stock commands with it."""

from __future__ import annotations

import re
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from s3prl_ext import _autoload
from tests.support import python_process

WORKERS = """
import sys
from s3prl.downstream.speech_commands.dataset import SpeechCommandsTestingDataset
from torch.utils.data import DataLoader

if __name__ == "__main__":
    dataset = SpeechCommandsTestingDataset(speech_commands_test_root=sys.argv[1])
    for context in sys.argv[2:]:
        loader = DataLoader(dataset, num_workers=1, multiprocessing_context=context, collate_fn=dataset.collate_fn)
        for wavs, labels, names in loader:
            print(context, wavs[0].shape, labels[0], names[0])
"""


@pytest.fixture
def run_python(tmp_path):
    """Run a Python of its own in an empty folder."""
    return lambda *arguments, **options: python_process.run(tmp_path, *arguments, **options)


def test_hook_imports_next_to_nothing(run_python, tmp_path):
    variables = {"PYTHONPYCACHEPREFIX": str(tmp_path / "pycache"), "PYTHONDONTWRITEBYTECODE": ""}
    times = []
    for _ in range(4):  # the first run compiles
        fields = [line.split("|") for line in run_python("-X", "importtime", "-c", "", **variables).stderr.splitlines()]
        imported = {name.strip(): int(total) for _, total, name in fields if total.strip().isdigit()}
        assert "s3prl_ext._autoload" in imported
        assert not {"torch", "torchaudio", "s3prl", "yaml", "s3prl_ext.plugin"} & set(imported)
        times.append(imported["s3prl_ext._autoload"])
    assert min(times) < 2000  # microseconds; 300 where nothing else runs


def test_hook_registers_one_finder(run_python):
    code = "import sys; print([finder.__name__ for finder in sys.meta_path if hasattr(finder, '__name__')])"
    assert run_python("-c", code).stdout.count("FirstImport") == 1
    assert "FirstImport" not in run_python("-c", code, hook=False).stdout


def test_hook_leaves_other_programs_alone(run_python):
    code = "import sys, json, yaml; print('s3prl_ext.plugin' in sys.modules)"
    assert run_python("-c", code).stdout.strip() == "False"


def test_hook_is_silent_where_the_package_is_gone(tmp_path):
    (tmp_path / "s3prl_ext.pth").write_text((python_process.REPOSITORY / "s3prl_ext.pth").read_text())
    code = f"import site; site.addsitedir({str(tmp_path)!r}); print('on')"
    result = python_process.run(tmp_path, "-I", "-S", "-c", code)
    assert (result.stdout.strip(), result.stderr) == ("on", "")


def test_finder_acts_on_s3prl_and_on_torchaudio_of_the_script(monkeypatch):
    triggered = []
    monkeypatch.setattr("s3prl_ext.plugin.install", lambda: triggered.append(True))
    find = _autoload.FirstImport.find_spec
    monkeypatch.setattr(sys, "argv", ["train.py"])
    assert find("torch") is None and find("torchaudio") is None and not triggered
    monkeypatch.setattr(sys, "argv", ["/clone/s3prl/run_downstream.py"])
    assert find("torch") is None and not triggered
    assert find("torchaudio").name == "torchaudio" and len(triggered) == 1
    assert find("s3prl").name == "s3prl" and len(triggered) == 2


def test_withdrawn_finder_does_not_install(run_python):
    code = "import sys, s3prl_ext; s3prl_ext.uninstall(); import s3prl; print('s3prl_ext.compat' in sys.modules, \
        any(type(finder).__name__ == 'HookFinder' for finder in sys.meta_path))"
    assert run_python("-c", code).stdout.split()[-1] == "False"


def test_stock_module_command_has_the_upstreams(run_python):
    result = run_python("-m", "s3prl.run_downstream", "-h")
    assert "'merged_attention'" in re.sub(r"\s", "", result.stdout)


@pytest.mark.slow
def test_stock_script_has_the_upstreams(run_python, tmp_path):
    shutil.copy(Path(find_spec("s3prl").origin).parent / "run_downstream.py", tmp_path)
    result = run_python("run_downstream.py", "-h")
    assert "'merged_attention'" in re.sub(r"\s", "", result.stdout)


@pytest.mark.slow
def test_switched_off_hook_leaves_the_stock_command_as_it_is(run_python):
    result = run_python("-m", "s3prl.run_downstream", "-h", hook=False, check=False)
    assert "merged_attention" not in result.stdout + result.stderr


@pytest.mark.slow
def test_our_runner_module_can_be_imported_first(run_python):
    code = (
        "import s3prl_ext.training.runner as ours, s3prl.downstream.runner as s3prl\nprint(s3prl.Runner is ours.Runner)"
    )
    assert run_python("-c", code).stdout.split()[-1] == "True"


def test_workers_of_spawn_and_forkserver_read_audio(run_python, tmp_path):
    import numpy as np
    import soundfile

    clip = tmp_path / "test" / "yes" / "a_nohash_0.wav"
    clip.parent.mkdir(parents=True)
    soundfile.write(clip, np.zeros(1600, dtype=np.int16), 16000)
    (tmp_path / "workers.py").write_text(WORKERS, encoding="utf-8")
    output = run_python("workers.py", str(tmp_path / "test"), "spawn", "forkserver").stdout.splitlines()
    assert output[-2:] == [f"{context} (1600,) 0 yes-a_nohash_0.wav" for context in ("spawn", "forkserver")]
