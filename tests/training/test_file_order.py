"""Two copies of a corpus on disks that list them in opposite order, one under another path: one experiment."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from s3prl_ext.configs import expand_variables
from s3prl_ext.corpora.listing import listed
from s3prl_ext.mini_superb import ALL, TRAINED, variables
from s3prl_ext.training.batching.corpus_hash import Corpus
from tests.support import listings
from tests.support.experiments import make_args, record_losses, task_config

SPLITS = {"asr": ("train", "dev-clean", "test-clean"), "pr": ("train", "dev", "test"), "ood": ("train", "dev", "test")}


@pytest.fixture(scope="module")
def places(mini_superb, tmp_path_factory) -> dict[str, Path]:
    """The miniature corpora on two disks: folder by the order in which it is listed."""
    other = tmp_path_factory.mktemp("elsewhere") / "a" / "corpora"
    shutil.copytree(mini_superb, other)
    return {"forwards": mini_superb, "backwards": other}


@pytest.fixture
def runner(places, build, hubert_ckpt, tmp_path, monkeypatch, request):
    """Return a function that builds a Runner on one of the two disks; listings stay in its order."""

    def make(order: str, task: str, upstream: str = "fbank", **config: Any) -> Any:
        for name, value in variables(ALL, places[order]).items():
            monkeypatch.setenv(name, str(value))
        args = make_args(tmp_path / order, upstream=upstream, downstream=TRAINED[task].task.downstream)
        args.upstream_ckpt = hubert_ckpt if upstream == "hubert_local" else None
        return build(args, task_config(task, **config))

    return make


def utterances(dataset: Any, root: Path) -> list[Any]:
    """Return what a dataset holds in its order, without the place of the corpus."""
    if hasattr(dataset, "indices"):  # ER's dev is drawn
        return [utterances(dataset.dataset, root)[index] for index in dataset.indices]
    lists = (
        "meta_data",
        "data",
        "X",
        "file_list",
        "dataset",
        "rec_list",
        "recolist",
        "chunk_indices",
        "utterances",
        "clips",
    )
    for found in (getattr(dataset, name, None) for name in lists):
        if isinstance(found, (list, tuple)):
            return [str(item).replace(str(root), "") for item in found]
    return list(dataset.df.path)  # IC


@pytest.mark.parametrize("task", TRAINED)
def test_every_task_lists_its_utterances_alike(places, runner, task):
    found = {}
    for order, root in places.items():
        with listings.by_name(order == "backwards"):
            expert = runner(order, task).downstream.model
            found[order] = {
                split: utterances(expert.get_dataloader(split).dataset, root)
                for split in SPLITS.get(task, ("train", "dev", "test"))
            }
    assert found["forwards"] == found["backwards"] and all(found["forwards"].values())


@pytest.mark.parametrize("task", TRAINED)
def test_hashes_do_not_know_the_disk(places, runner, task, monkeypatch):
    found = []
    for order, root in places.items():
        for name, value in variables(ALL, root).items():
            monkeypatch.setenv(name, str(value))
        config = expand_variables(task_config(task))
        with listings.by_name(order == "backwards"):
            corpus = Corpus(TRAINED[task].task.downstream, config)
            found.append([corpus.hash, corpus.splits_sha256])
    assert found[0] == found[1] and found[0][0] is not None


def test_the_hash_does_not_know_which_of_two_links_is_listed_first(tmp_path):
    """A folder that two links lead to counts once, under the name that sorts first."""
    (tmp_path / "audio").mkdir()
    (tmp_path / "audio" / "a.wav").write_bytes(b"a")
    (tmp_path / "corpus").mkdir()
    for name in ("one", "two"):
        (tmp_path / "corpus" / name).symlink_to(tmp_path / "audio")
    found = []
    for backwards in (False, True):
        with listings.by_name(backwards):
            found.append(Corpus("ljspeech", {"downstream_expert": {"datarc": {"path": str(tmp_path / "corpus")}}}).hash)
    assert found[0] == found[1]


def test_keyword_spotting_is_one_experiment(places, runner):
    """Same mask, same training losses, same dev score, same hashes, bit by bit."""
    found = {}
    tuning = {"method": "child", "density": 0.1, "fisher": {"max_batches": 3}}
    for order in places:
        with listings.by_name(order == "backwards"):
            going = runner(order, "ks", "hubert_local", tuning=tuning, total_steps=3, evaluate_ratio=0.5)
            losses = record_losses(going)
            going.train()
        mask = {name: indices.tolist() for name, indices in going.child.mask.items()}
        record = (Path(going.args.expdir) / "result.json").read_text()
        found[order] = {"mask": mask, "losses": losses, "hashes": hashes(record), "metrics": metrics(record)}
    for part, value in found["forwards"].items():
        assert value and value == found["backwards"][part], part


def hashes(record: str) -> Any:
    data = json.loads(record)["data"]
    return {name: data[name] for name in data if "sha256" in name}


def metrics(record: str) -> Any:
    return json.loads(record)["history"]


def test_clips_of_one_length_keep_the_order_of_the_table_of_asr():
    """In pandas' own sort it depends on the instructions of the processor, and on the number of clips."""
    import pandas
    from s3prl.downstream.asr import dataset

    lengths = [16000 + 80 * (number * 7 % 5) for number in range(2000)]
    parts = [pandas.DataFrame({"file_path": range(k, 2000, 2), "length": lengths[k::2]}) for k in (0, 1)]
    table = dataset.pd.concat(parts).sort_values(by=["length"], ascending=False)
    given = [*range(0, 2000, 2), *range(1, 2000, 2)]
    assert table["file_path"].tolist() == sorted(given, key=lambda number: -lengths[number])
    assert (
        pandas.concat(parts).sort_values(by=["length"], ascending=False)["file_path"].tolist()
        != table["file_path"].tolist()
    )


def test_clips_in_folders_that_are_links_are_found_once(tmp_path):
    for name in ("disk/11/1/a.flac", "corpus/22/1/b.flac", "corpus/22/1/._b.flac", "corpus/22/1/b.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    corpus = tmp_path / "corpus"
    (corpus / "11").symlink_to(tmp_path / "disk" / "11")
    (corpus / "22" / "loop").symlink_to(corpus)
    (corpus / "00").symlink_to(corpus / "22")
    found = [path.relative_to(corpus).as_posix() for path in listed(corpus, "**/*.flac")]
    assert found == ["11/1/a.flac", "22/1/b.flac"]
    assert listed(tmp_path / "nowhere", "**/*.flac") == []
