"""IEMOCAP's five folds: no session in training and test, the same lists on every disk, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from s3prl_ext.commands.prepare import main as prepare
from s3prl_ext.compat.emotion import fold_of
from s3prl_ext.corpora import iemocap
from s3prl_ext.errors import DataError, UsageError
from s3prl_ext.tasks.er import FOLDS
from tests.support import listings


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Two turns of each emotion, and of two that are left out, in each session; the audio is empty."""
    root = tmp_path / "IEMOCAP"
    for number, session in enumerate(iemocap.SESSIONS, 1):
        for gender in "FM":
            dialogue = f"Ses{number:02d}{gender}_script01"
            lines = ["% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]\n", "\n"]
            for turn, emotion in enumerate(("neu", "hap", "exc", "ang", "sad", "fru", "xxx")):
                name = f"{dialogue}_{gender}{turn:03d}"
                clip = root / session / "sentences" / "wav" / dialogue / f"{name}.wav"
                clip.parent.mkdir(parents=True, exist_ok=True)
                clip.touch()
                lines.append(f"[{turn}.0000 - {turn}.5000]\t{name}\t{emotion}\t[2.5, 2.5, 2.5]\n")
                lines.append("C-E1:\tNeutral;\t()\n")
            table = root / session / "dialog" / "EmoEvaluation" / f"{dialogue}.txt"
            table.parent.mkdir(parents=True, exist_ok=True)
            table.write_text("".join(lines))
            (table.parent / f"._{table.name}").write_bytes(b"\xff\xfe")  # as macOS leaves it
    return root


def rows(root: Path, fold: str, part: str) -> list[dict[str, str]]:
    path = root / "meta_data" / fold.replace("fold", "Session") / f"{part}_meta_data.json"
    return json.loads(path.read_text())["meta_data"]


def test_a_session_is_never_in_training_and_test(corpus, capsys):
    assert prepare(["iemocap", "--root", str(corpus)]) == 0
    assert "50 utterances: neu 10, hap 20, ang 10, sad 10" in capsys.readouterr().out
    tested = []
    for number, fold in enumerate(FOLDS, 1):
        train, test = rows(corpus, fold, "train"), rows(corpus, fold, "test")
        sessions = [{row["path"].split("/")[0] for row in part} for part in (train, test)]
        assert sessions[1] == {f"Session{number}"} and len(sessions[0]) == 4 and not sessions[0] & sessions[1]
        speakers = [{row["speaker"] for row in part} for part in (train, test)]
        assert speakers[1] == {f"Ses{number:02d}F", f"Ses{number:02d}M"} and not speakers[0] & speakers[1]
        iemocap.check_fold(corpus, corpus / "meta_data", fold)
        tested += [row["path"] for row in test]
    assert len(tested) == len(set(tested)) == 50, "every utterance is tested once"
    labels = {row["path"][-5]: row["label"] for row in rows(corpus, "fold1", "train")}
    assert labels == {"0": "neu", "1": "hap", "2": "hap", "3": "ang", "4": "sad"}, "excitement counts as happiness"


def test_the_lists_are_the_same_on_every_disk(corpus):
    found = []
    for backwards in (False, True):
        with listings.by_name(backwards):
            iemocap.write_lists(corpus)
        found.append({p.relative_to(corpus): p.read_bytes() for p in (corpus / "meta_data").rglob("*.json")})
    assert len(found[0]) == 10 and found[0] == found[1]


def test_lists_that_differ_are_kept_unless_told_otherwise(corpus):
    iemocap.write_lists(corpus)
    iemocap.write_lists(corpus)  # the same again
    path = corpus / "meta_data" / "Session4" / "test_meta_data.json"
    official = path.read_bytes()
    content = json.loads(official)
    content["meta_data"].reverse()
    path.write_text(json.dumps(content))
    first = corpus / "meta_data" / "Session1" / "test_meta_data.json"
    first.unlink()
    with pytest.raises(DataError, match="Session4/test_meta_data.json is another list .*--overwrite"):
        prepare(["iemocap", "--root", str(corpus)])
    assert json.loads(path.read_text()) == content and not first.exists(), "nothing is written"
    assert prepare(["iemocap", "--root", str(corpus), "--overwrite"]) == 0
    assert path.read_bytes() == official and first.exists()


def renumbered(corpus: Path, fold: str, part: str) -> None:
    """Give a list the numbers of the emotions in the order of the alphabet."""
    path = corpus / "meta_data" / fold.replace("fold", "Session") / f"{part}_meta_data.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"labels": {name: i for i, name in enumerate(sorted(iemocap.EMOTIONS))}}))


def swapped(corpus: Path, fold: str) -> None:
    """Put a turn of the test session into the training list."""
    path = corpus / "meta_data" / fold.replace("fold", "Session") / "train_meta_data.json"
    content = json.loads(path.read_text())
    content["meta_data"].append(rows(corpus, fold, "test")[0])
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: swapped(root, "fold2"), "Session2/.*wav, but fold2 trains on all but Session2"),
        (
            lambda root: shutil.copy(
                root / "meta_data/Session3/test_meta_data.json", root / "meta_data/Session2/test_meta_data.json"
            ),
            "Session3/.*but fold2 tests on Session2",
        ),
        (
            lambda root: renumbered(root, "fold2", "test"),
            "Session2/train.* numbers its emotions neu 0, hap 1, ang 2, sad 3, but .*/test.* has ang 0, hap 1, neu 2, sad 3.*overwrite",
        ),
        (
            lambda root: renumbered(root, "fold2", "train"),
            "numbers its emotions ang 0, hap 1, neu 2, sad 3, but .* has neu 0, hap 1, ang 2, sad 3",
        ),
        (lambda root: shutil.rmtree(root / "meta_data"), "no such list: .*prepare iemocap"),
        (lambda root: next(root.glob("Session2/**/*_F000.wav")).unlink(), "_F000.wav, which is not below"),
        (
            lambda root: (root / "meta_data/Session2/test_meta_data.json").write_text('{"labels": {}, "meta_data": [{}]}'),
            "not a list of s3prl's emotion recognition",
        ),
        (
            lambda root: (root / "meta_data/Session2/test_meta_data.json").write_text(
                '{"labels": {"neu": 0}, "meta_data": [{"path": "Session2/a.wav", "label": "joy"}]}'
            ),
            "'joy'.*not among neu",
        ),
    ],
)  # fmt: skip
def test_what_a_fold_is_refused_for(corpus, spoil, message):
    iemocap.write_lists(corpus)
    spoil(corpus)
    with pytest.raises(DataError, match=message):
        iemocap.check_fold(corpus, corpus / "meta_data", "fold2")


def test_a_corpus_without_emotions_is_refused(corpus, tmp_path):
    with pytest.raises(UsageError, match="no such folder"):
        prepare(["iemocap", "--root", str(tmp_path / "nowhere")])
    shutil.rmtree(corpus / "Session4")
    with pytest.raises(DataError, match="no such folder: .*Session4.*must hold IEMOCAP's Session1/ to Session5/"):
        prepare(["iemocap", "--root", str(corpus)])


def test_the_fold_of_a_run():
    assert fold_of({}, None) == "fold1" and fold_of({"test_fold": "fold3"}, "fold3") == fold_of({}, "fold3") == "fold3"
    with pytest.raises(UsageError, match="unknown fold .*'flod2'; did you mean 'fold2'"):
        fold_of({"test_fold": "flod2"}, None)
    with pytest.raises(UsageError, match="-v fold2 has no effect.*test_fold=fold2"):
        fold_of({"test_fold": "fold1"}, "fold2")
