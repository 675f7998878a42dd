"""Tables of Common Voice: their order, and what is refused."""

from __future__ import annotations

import csv
import logging
import shutil
from pathlib import Path

import pytest

import s3prl_ext
from s3prl_ext.compat.ctc.corpus.common_voice import read_table
from s3prl_ext.configs import load_yaml, shipped_dir
from s3prl_ext.errors import DataError, UsageError
from s3prl_ext.evaluation.result_records import read_record
from s3prl_ext.evaluation.scored_runs import runs_of
from tests.support.experiments import make_args, task_config
from tests.training.conftest import build, corpus_variables, hubert_ckpt, hubert_folder

__all__ = ["build", "corpus_variables", "hubert_ckpt", "hubert_folder"]

HEAD = "path\tsentence\n"


@pytest.fixture
def tokenizer(tmp_path):
    s3prl_ext.install()
    from s3prl.downstream.ctc.text import load_text_encoder

    (tmp_path / "char.txt").write_text(" \nA\nB\nÑ")
    return load_text_encoder("character", str(tmp_path / "char.txt"))


@pytest.fixture
def dataset(tmp_path, tokenizer):
    from s3prl.downstream.ctc.corpus.common_voice import CommonVoiceDataset

    for name in ("1.wav", "2.wav", "3.wav"):
        (tmp_path / name).touch()

    def make(text: str, bucket: int = 1, **part):
        (tmp_path / "train.tsv").write_text(text)
        return CommonVoiceDataset([str(tmp_path / "train.tsv")], tokenizer, bucket, path=str(tmp_path), **part)

    return make


def test_the_order_of_the_table_stays(dataset, tokenizer):
    found = dataset(HEAD + "2.wav\tA\n1.wav\tA Ñ\n3.wav\tBB\n", bucket=2)
    assert [Path(path).name for path in found.file_list] == ["2.wav", "1.wav", "3.wav"]
    assert [Path(path).name for path, _ in found[2]] == ["1.wav", "3.wav"], "the last bucket begins earlier"
    assert tokenizer.decode(found[0][1][1]) == "A Ñ"


def test_a_table_is_read_as_s3prls_preprocessing_writes_it(tmp_path):
    """It writes and reads tables with ``csv``, which sets what holds a quotation mark in quotation marks."""
    with (tmp_path / "written.tsv").open("w") as file:
        writer = csv.writer(file, delimiter="\t")
        writer.writerows([("path", "sentence"), ("1.wav", 'A "B" A'), ("2.wav", "B A")])
    with (tmp_path / "written.tsv").open() as file:
        as_s3prl_reads = [tuple(row) for row in csv.reader(file, delimiter="\t")][1:]
    assert read_table(tmp_path / "written.tsv") == as_s3prl_reads == [("1.wav", 'A "B" A'), ("2.wav", "B A")]


@pytest.mark.parametrize(
    ("ratio", "offset", "expected"),
    [(1.0, 1, "123"), (0.9, 1, "23"), (0.5, 0, "13"), (0.5, 1, "2"), (0.4, 0, "13"), (0.3, 2, "3")],
)
def test_a_ratio_reads_every_nth_clip_from_the_offset_on(dataset, ratio, offset, expected):
    """As s3prl's own class does."""
    found = dataset(HEAD + "1.wav\tA\n2.wav\tB\n3.wav\tBB\n", ratio=ratio, offset=offset)
    assert "".join(Path(path).stem for path in found.file_list) == expected


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"ratio": 0}, "corpus.ratio must be a number above 0 and up to 1, got 0"),
        ({"ratio": "half"}, "corpus.ratio must be"),
        ({"ratio": 1.5}, "corpus.ratio must be"),
        ({"offset": -1}, "corpus.offset must be a whole number from 0 on, got -1"),
        ({"ratio": 0.5, "offset": 1}, "corpus.offset 1 is behind the last of the 1 clips of .*train.tsv: take a lower"),
    ],
)
def test_a_part_that_is_none_is_refused(dataset, part, message):
    with pytest.raises(UsageError, match=message):
        dataset(HEAD + "1.wav\tA\n", **part)


def test_s3prl_reads_all_of_train_and_a_part_of_dev(dataset, tokenizer, tmp_path):
    from s3prl.downstream.ctc.data import create_dataset

    dataset(HEAD + "1.wav\tA\n2.wav\tB\n3.wav\tBB\n")
    table = [str(tmp_path / "train.tsv")]
    sizes = [
        len(
            create_dataset(
                split, tokenizer, "common_voice", False, 1, path=str(tmp_path), ratio=0.5, offset=1, **{split: table}
            )[0]
        )
        for split in ("train", "dev")
    ]
    assert sizes == [3, 1]


def test_unknown_characters_are_counted(dataset, caplog):
    with caplog.at_level(logging.WARNING):
        dataset(HEAD + f"1.wav\t{'AB ' * 10}?!\n")
    assert "2 characters are not in text.vocab_file" in caplog.text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("client_id\tpath\n", "its first line must name path and sentence"),
        (HEAD + "1.wav\n", "line 2 must be 'CLIP<tab>SENTENCE', got '1.wav'"),
        (HEAD + "1.wav\tA\n2.wav\t \n", "line 3 must be"),
        (HEAD + "9.wav\tA\n", "lists 9.wav, which is not in"),
        (HEAD + '1.wav\t"A\n2.wav\tB\n', "line 3: a quotation mark is left open before it"),
        (HEAD + f"1.wav\t{'A' * 200_000}\n", "line 2: field larger than field limit"),
        ("", "its first line must name path and sentence"),
        (HEAD, "only 0 were found"),
        (
            HEAD + "1.wav\tABC?\n",
            "2 of 4 characters are not in text.vocab_file, .*give the vocabulary of this language",
        ),
    ],
)
def test_a_table_that_does_not_fit_is_refused(dataset, text, message):
    with pytest.raises(DataError, match=message):
        dataset(text)


def test_a_missing_vocabulary_says_where_there_is_one(tmp_path):
    s3prl_ext.install()
    from s3prl.downstream.ctc import expert

    with pytest.raises(DataError, match=r"no such vocabulary: .*none.txt; .*point COMMON_VOICE_VOCAB at that folder"):
        expert.load_text_encoder("character", str(tmp_path / "none.txt"))


def test_sbcsae_is_a_set_of_the_same_task(build, corpus_variables, tmp_path, monkeypatch):
    source, root = corpus_variables / "common_voice" / "es", tmp_path / "conversations"
    (root / "wav").parent.mkdir()
    (root / "wav").symlink_to(source / "clips")
    for split in ("train", "dev", "test"):
        shutil.copy(source / f"{split}.tsv", root)
    shutil.copy(source / "char.txt", root / "en_char.txt")
    monkeypatch.setenv("SBCSAE", str(root))
    monkeypatch.setenv("COMMON_VOICE_VOCAB", str(root))
    config = task_config("ood")
    shipped = load_yaml(shipped_dir("downstream_configs") / "ood" / "sbcsae.yaml")["downstream_expert"]
    config["downstream_expert"] |= {
        "corpus": shipped["corpus"] | {"batch_size": 4, "num_workers": 0},
        "text": shipped["text"],
    }
    build(make_args(tmp_path / "exp", downstream="ctc", upstream="fbank"), config).train()
    record = read_record(tmp_path / "exp" / "result.json")
    (run,) = runs_of(record)
    assert (run.task, run.part, run.main_metric) == ("ood", "sbcsae", "wer")
    assert record.at("data.files") > 40 and record["splits_sha256"]
