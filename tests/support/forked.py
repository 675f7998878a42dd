"""``run_downstream`` in processes of their own, alone or as the ranks of one run, started in a fraction of a second.

The processes are forked from one that has imported everything once. Each is a real process: it has its own signals, exit
status and output, and may be killed.
"""

from __future__ import annotations

import copy
import importlib
import multiprocessing
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import tqdm.std

tqdm.std.TqdmDefaultWriteLock.mp_lock = None  # all that are forked would share it, and one that is killed would keep it

import s3prl_ext

s3prl_ext.install()

import matplotlib.pyplot  # noqa: F401
import soundfile
import torch
from transformers import BertConfig, BertModel, HubertModel, Wav2Vec2FeatureExtractor  # noqa: F401

from s3prl_ext import doctor, run_downstream
from s3prl_ext.training import distributed, runner
from s3prl_ext.training.forward import unwrapped

for module in doctor.S3PRL_MODULES:  # what runs import, once for all of them
    importlib.import_module(module)
with tempfile.TemporaryDirectory() as folder:  # transformers builds its table of renamed weights with the first model
    sizes = {
        "hidden_size": 2,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "intermediate_size": 2,
        "vocab_size": 2,
    }
    BertModel(BertConfig(**sizes)).save_pretrained(folder)
    BertModel.from_pretrained(folder)

SECONDS = 120.0  # longest run of a test

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.support.forked"])


def start_server() -> None:
    """Start the process that the others are forked from; again is no change."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[2]), *([before] if before else [])])
    try:
        forkserver.ensure_running()
    finally:
        del os.environ["PYTHONPATH"]
        if before is not None:
            os.environ["PYTHONPATH"] = before


class Command:
    """One ``run_downstream`` command, or another, in a process of its own.

    Args:
        flags: of the command.
        log: file for its output.
        variables: environment variables to set.
        before: called in the process before the command starts, to watch or to disturb it.
        main: the command: a function of a module that takes the flags; what it returns is the exit status.
        rank: number of this process among `ranks` that belong together.
        ranks: 0 for a process on its own.
        port: where the ranks meet.
    """

    def __init__(
        self,
        flags: Sequence[Any],
        log: Path,
        variables: Mapping[str, str],
        before: Callable[..., None] | None = None,
        main: Callable[[list[str]], Any] = run_downstream.main,
        rank: int = 0,
        ranks: int = 0,
        port: int = 0,
    ) -> None:
        self.log = log
        group = {}
        if ranks:
            group = {
                "RANK": rank,
                "LOCAL_RANK": rank,
                "WORLD_SIZE": ranks,
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
            }
        environment = dict(variables) | {name: str(value) for name, value in group.items()}
        start_server()
        self.process: BaseProcess = _context.Process(
            target=_run, args=([str(flag) for flag in flags], str(log), environment, before, main)
        )
        self.process.start()

    def wait(self, seconds: float = SECONDS) -> int:
        """Return the exit status, negative for a signal; fails where the process takes longer."""
        self.process.join(seconds)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
            raise AssertionError(f"still running after {seconds:.0f} s: {self.output[-2000:]}")
        return self.process.exitcode

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal."""
        os.kill(self.process.pid or 0, number)

    @property
    def output(self) -> str:
        """What it has written to stdout and stderr."""
        return self.log.read_text(errors="replace") if self.log.is_file() else ""

    @property
    def sentence(self) -> str:
        """The error sentence it ended with; fails where there is a traceback, or none."""
        assert "Traceback" not in self.output, self.output[-3000:]
        (line,) = [line for line in self.output.splitlines() if line.startswith("s3prl-ext: ")]
        assert "S3PRL_EXT_DEBUG" not in line, line
        return line.removeprefix("s3prl-ext: ")


def _run(
    flags: list[str],
    log: str,
    variables: dict[str, str],
    before: Callable[..., None] | None,
    main: Callable[[list[str]], Any],
) -> None:
    os.environ.update(variables)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the server that we are forked from ignores it
    multiprocessing.set_start_method("fork", force=True)  # as in a command; the server's would be taken over
    torch.set_num_threads(1)
    if before is not None:
        before()
    sys.exit(main(flags))


class Ranks:
    """The ranks of one run, as ``torchrun`` starts them; where one fails, the others are told to stop.

    Args:
        flags: of the command.
        folder: for the outputs.
        variables: environment variables to set.
        before: by rank, see :class:`Command`.
        number: of ranks.
    """

    def __init__(
        self,
        flags: Sequence[Any],
        folder: Path,
        variables: Mapping[str, str],
        before: Mapping[int, Callable[..., None]] | None = None,
        number: int = 2,
    ) -> None:
        port = free_port()
        self.commands = [
            Command(
                flags,
                folder / f"rank-{rank}.log",
                variables,
                (before or {}).get(rank),
                rank=rank,
                ranks=number,
                port=port,
            )
            for rank in range(number)
        ]

    def wait(self, seconds: float = SECONDS) -> list[int]:
        """Return the exit statuses."""
        deadline = time.monotonic() + seconds
        return [command.wait(max(1.0, deadline - time.monotonic())) for command in self.commands]

    def kill(self, number: int) -> None:
        """Send every rank a signal, as ``torchrun`` does when it gets one."""
        for command in self.commands:
            command.kill(number)

    def succeed(self) -> None:
        """Require that all end with status 0."""
        codes = self.wait()
        assert codes == [0] * len(codes), "\n".join(command.output[-3000:] for command in self.commands)


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


# -- disturbances: picklable callables for `before` -------------------------------------------------------------------


class AtLoss:
    """Send the process a signal while it computes its n-th loss, whether for Fisher information, training or scores."""

    def __init__(self, number: int, signal_number: int = signal.SIGKILL) -> None:
        self.number, self.signal_number = number, signal_number

    def __call__(self) -> None:
        from s3prl_ext.training.forward import TaskModels

        loss, seen = TaskModels.loss, []

        def counting(*args: Any, **kwargs: Any) -> torch.Tensor:
            seen.append(1)
            if len(seen) == self.number:
                self.send()
            return loss(*args, **kwargs)

        TaskModels.loss = counting  # type: ignore[method-assign]

    def send(self) -> None:
        os.kill(os.getpid(), self.signal_number)


class GroupAtLoss(AtLoss):
    """Let another process send SIGTERM to this one and all that it has started, as ``scancel`` does, at its n-th loss."""

    def __call__(self) -> None:
        os.setpgid(0, 0)
        super().__call__()

    def send(self) -> None:
        subprocess.run(["kill", "-TERM", "--", f"-{os.getpgid(0)}"], check=True, start_new_session=True)
        time.sleep(0.2)  # the processes that load data would have ended by now


class AtFile:
    """Kill the process when its n-th file is about to appear under its name, or right after it has.

    Args:
        number: of the file, from 1.
        after: after the file has appeared.
        half: leave only half of the bytes in the temporary file.
    """

    def __init__(self, number: int, after: bool = False, half: bool = False) -> None:
        self.number, self.after, self.half = number, after, half

    def __call__(self) -> None:
        replace, seen = os.replace, []

        def counting(source: Any, target: Any, **kwargs: Any) -> None:
            seen.append(1)
            last = len(seen) == self.number
            if last and self.half:
                os.truncate(source, Path(source).stat().st_size // 2)
            if last and not self.after:
                os.kill(os.getpid(), signal.SIGKILL)
            replace(source, target, **kwargs)
            if last:
                os.kill(os.getpid(), signal.SIGKILL)

        os.replace = counting


class CountFiles:
    """Write the name of each file that appears to a list."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self) -> None:
        replace = os.replace

        def noting(source: Any, target: Any, **kwargs: Any) -> None:
            replace(source, target, **kwargs)
            with self.path.open("a") as file:
                file.write(f"{target}\n")

        os.replace = noting


class SaveFisherOften:
    """Save the state of a Fisher pass after every batch; then do what comes next."""

    def __init__(self, following: Callable[..., None]) -> None:
        self.following = following

    def __call__(self) -> None:
        from s3prl_ext.training.selection import scoring_pass

        scoring_pass.SAVE_SECONDS = -1.0
        self.following()


class Both:
    """Several disturbances."""

    def __init__(self, *parts: Callable[..., None]) -> None:
        self.parts = parts

    def __call__(self) -> None:
        for part in self.parts:
            part()


class KeepStates:
    """Write the weights of all models before and after training, and the child network's mask, to a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self) -> None:
        train = runner.Runner.train

        def keeping(self_: runner.Runner) -> None:
            start = copy.deepcopy(_weights(self_))
            train(self_)
            mask = self_.child.mask if self_.child else {}
            torch.save({"start": start, "end": _weights(self_), "mask": mask}, self.path)

        runner.Runner.train = keeping  # type: ignore[method-assign]


class NoteClips:
    """Write the names of the clips that this process trains on to a file, in order, one a line."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self) -> None:
        from s3prl_ext.training.forward import TaskModels, clip_names

        loss = TaskModels.loss

        def noting(self_: TaskModels, split: str, wavs: Any, others: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
            if torch.is_grad_enabled():
                with self.path.open("a") as file:
                    file.writelines(f"{name}\n" for name in clip_names(others))
            return loss(self_, split, wavs, others, *args, **kwargs)

        TaskModels.loss = noting  # type: ignore[method-assign]


def _weights(runner_: runner.Runner) -> dict[str, torch.Tensor]:
    states = ((entry.name, unwrapped(entry.model).state_dict()) for entry in runner_.all_entries)
    weights = {f"{part}.{name}": value for part, state in states for name, value in state.items()}
    weights.pop("Downstream.best_score", None)  # the first rank's memory of its evaluations
    return weights


class NoEvaluation:
    """Fail where this process evaluates anything."""

    def __call__(self) -> None:
        from s3prl_ext.training import trainer
        from s3prl_ext.training.racing import candidate_runs

        def refusing(*args: Any, **kwargs: Any) -> Any:
            raise AssertionError("this rank must not evaluate")

        trainer.evaluate = candidate_runs.evaluate = refusing  # type: ignore[assignment]


class SharedBatches:
    """Train on fixed batches without dropout: a step takes the same clips whatever the number of ranks.

    Args:
        clips: in the batches of all ranks together.
    """

    def __init__(self, clips: int) -> None:
        self.clips = clips

    def __call__(self) -> None:
        from s3prl_ext.training.trainer import Trainer

        def loader(loop: Trainer, epoch: int) -> Any:
            for module in loop.state.models.modules():
                for part in module.modules():
                    for name in ("p", "dropout"):
                        if isinstance(getattr(part, name, None), float):
                            setattr(part, name, 0.0)
            dataset = unwrapped(loop.state.models.downstream).train_dataset
            lengths = [soundfile.info(path).frames for _, path in dataset.data]
            usual = statistics.mode(lengths)  # without padding a clip's features do not depend on its batch
            alike = [i for i, length in enumerate(lengths) if length == usual]
            rank, size = distributed.rank(), distributed.world_size()
            starts = range(0, len(alike) - self.clips + 1, self.clips)
            batches = [alike[start : start + self.clips][rank::size] for start in starts]
            return torch.utils.data.DataLoader(dataset, batch_sampler=batches, collate_fn=dataset.collate_fn)

        Trainer._make_loader = loader  # type: ignore[method-assign]
