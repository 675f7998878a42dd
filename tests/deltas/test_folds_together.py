"""Runs that divide one corpus differently are not merged: each has trained on what another one tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from s3prl_ext.child_tuning.delta import Delta
from s3prl_ext.deltas.merging import check_one_division
from s3prl_ext.deltas.trained_task import TrainedTask
from s3prl_ext.errors import UsageError


def trained(name: str, fold: str | None = None, variant: str | None = None, downstream: str = "emotion") -> TrainedTask:
    info = {
        "upstream": "fbank", "downstream": downstream, "downstream_variant": variant,
        "config": {"downstream_expert": {"datarc": {"test_fold": fold, "valid_ratio": 0.2}}},
    }  # fmt: skip
    return TrainedTask(Path(name), info, Delta("", info=info))


def test_two_folds_are_not_merged():
    with pytest.raises(UsageError, match="one was trained with .*test_fold fold1 and two with fold2, so that"):
        check_one_division(
            [trained("one"), trained("ks", "fold3", downstream="speech_commands"), trained("two", variant="fold2")]
        )


def test_seeds_of_one_fold_and_other_tasks_are_merged():
    check_one_division(
        [trained("one", "fold2"), trained("two", variant="fold2"), trained("ks", "fold3", downstream="ks")]
    )


def divided(name: str, downstream: str, expert: dict, lists: str | None, corpus: str = "c") -> TrainedTask:
    info = {
        "upstream": "fbank", "downstream": downstream, "config": {"downstream_expert": expert}, "splits_rule": 1,
        "data": {"sha256": corpus, "splits_sha256": lists},
    }  # fmt: skip
    return TrainedTask(Path(name), info, Delta("", info=info))


def test_two_folds_of_esc50_are_not_merged():
    folds = [divided(f"{n}", "esc50", {"split": "folds", "fold": n}, None) for n in (1, 1, 2)]
    check_one_division(folds[:2])
    with pytest.raises(UsageError, match="1 was trained with downstream_expert.fold 1 and 2 with 2, so that"):
        check_one_division(folds)


def test_other_lists_of_one_corpus_are_not_merged():
    runs = [divided("one", "ljspeech", {}, "a"), divided("ks", "speech_commands", {}, "b"),
            divided("earlier", "ljspeech", {}, None), divided("seed", "ljspeech", {}, "a")]  # fmt: skip
    check_one_division(runs)
    with pytest.raises(
        UsageError, match="seed and two were trained with different lists of train, dev and test of one"
    ):
        check_one_division([*runs[1:], divided("two", "ljspeech", {}, "b")])


def speakers(name: str, lists: str, **speakers: list[str]) -> TrainedTask:
    named = {"train": ["train"], "dev": ["valid"], "test": ["test"]}
    named |= {"train_speakers": ["Ivy"], "valid_speakers": ["Amy"], "test_speakers": ["Emma"]}
    return divided(name, "ctc", {"corpus": {"name": "snips", "path": "/c", **named, **speakers}}, lists)


def test_lists_in_the_task_file_may_differ_where_neither_run_tests_what_the_other_has_trained_on():
    one = speakers("one", "a")
    check_one_division([one, speakers("two", "b", train_speakers=["Joey", "Justin"])])
    check_one_division([one, speakers("two", "b", test_speakers=["Brian"])])
    for other in ({"train_speakers": ["Joey", "Emma"]}, {"valid_speakers": ["Ivy"]}, {"train": ["train", "test"]}):
        for runs in ([one, speakers("two", "b", **other)], [speakers("two", "b", **other), one]):
            with pytest.raises(UsageError, match="different lists of train, dev and test of one corpus, so that a"):
                check_one_division(runs)
    with pytest.raises(UsageError, match="a test of their merge may score training clips"):
        check_one_division([one, speakers("two", "b")])  # what differs is not in the task file


def test_other_corpora_of_one_task_are_merged_with_a_warning(caplog):
    check_one_division([divided("one", "ljspeech", {}, "a"), divided("two", "ljspeech", {}, "b", "other")])
    assert "one and two were trained on other data with other lists" in caplog.text
    caplog.clear()
    languages = [{"corpus": {"name": "common_voice", "path": f"/cv/{name}/clips"}} for name in ("es", "ar", "es")]
    runs = [divided(f"{n}", "ctc", expert, f"{n}", f"{n}") for n, expert in enumerate(languages)]
    check_one_division(runs[:2])
    assert not caplog.text
    check_one_division(runs)
    assert "0 and 2 were trained on other data" in caplog.text and "1 and" not in caplog.text
