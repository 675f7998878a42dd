"""``s3prl-ext compare`` on two small files of transcripts."""

from __future__ import annotations

import json

import pytest

from s3prl_ext import cli
from s3prl_ext.evaluation.transcripts import transcript, write_transcripts


@pytest.fixture
def files(tmp_path):
    """Two files of transcripts: one utterance better, one worse, one alike."""
    texts = {"u1": "stand to gain", "u2": "the match", "u3": "same"}
    hypotheses = (
        {"u1": "stant togain", "u2": "the match", "u3": "same"},
        {"u1": "stand to gain", "u2": "the much", "u3": "same"},
    )
    paths = tmp_path / "base.jsonl", tmp_path / "merged.jsonl"
    for path, said in zip(paths, hypotheses):
        write_transcripts([transcript(id, text, said[id]) for id, text in texts.items()], path)
    return paths


def test_table_categories_and_file(files, tmp_path, capsys):
    out = tmp_path / "out.json"
    assert cli.main(["compare", *map(str, files), "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "WER 50.00 % -> 16.67 %: -33.33" in shown and "3 utterances" in shown
    assert shown.index("u1: 3 word errors fewer") < shown.index("u2: 1 word errors more")
    assert "baseline   *stant* *togain*" in shown and "merged     the *much*" in shown
    assert "1 utterances improved; confirmed character edits: insertion 50.00 %, substitution 50.00 %" in shown
    content = json.loads(out.read_text())
    assert content["wer"] == pytest.approx([50.0, 100 / 6])
    low, high = content["interval"]
    assert low <= content["difference"] <= high
    assert content["improvements"]["confirmed"] == {"insertion": 1, "substitution": 1, "deletion": 0}
    assert [row["id"] for row in content["utterances"]] == ["u1", "u2"]


def test_top_limits_what_is_shown(files, capsys):
    cli.main(["compare", *map(str, files), "--top", "1"])
    shown = capsys.readouterr().out
    assert "u1:" in shown and "u2:" not in shown


@pytest.mark.parametrize(("flags", "code", "part"), [
    (["nowhere.jsonl", "nowhere.jsonl"], 1, "no such file of transcripts: nowhere.jsonl"),
    (["/proc", "/proc"], 1, "/proc is a folder, not a file of transcripts: an evaluation of"),
    (["{0}", "{1}", "--top", "-1"], 2, "--top must be at least 0"),
    (["{0}", "{1}", "--out", "/nowhere/out.json"], 2, "there is no folder /nowhere"),
])  # fmt: skip
def test_bad_input(files, capsys, flags, code, part):
    with pytest.raises(SystemExit) as stop:
        cli.main(["compare", *(flag.format(*files) for flag in flags)])
    assert stop.value.code == code and part in capsys.readouterr().err


def test_only_its_own_result_is_replaced(files, tmp_path, capsys):
    out, notes, archive = tmp_path / "out.json", tmp_path / "notes.json", tmp_path / "model.ckpt"
    notes.write_text('{"files": []}')
    archive.write_bytes(b"PK\x03\x04\xff")
    (tmp_path / "link.jsonl").symlink_to(files[0])
    for path, part in ((files[1], "reads"), (tmp_path / "link.jsonl", "reads"), (notes, "not a file that this command"),
                       (archive, "not a file that this command"), (tmp_path, "is a folder")):  # fmt: skip
        before = path.read_bytes() if path.is_file() else None
        with pytest.raises(SystemExit) as stop:
            cli.main(["compare", *map(str, files), "--out", str(path)])
        assert stop.value.code == 2 and part in capsys.readouterr().err
        assert before is None or path.read_bytes() == before
    for flags in (files, files[::-1]):
        assert cli.main(["compare", *map(str, flags), "--out", str(out)]) == 0
    assert json.loads(out.read_text())["files"] == [str(path) for path in files[::-1]]


def test_folders(files, capsys):
    folder = files[0].parent
    (folder / "run").mkdir()
    (folder / "run" / "transcripts-dev.jsonl").touch()
    with pytest.raises(SystemExit) as stop:
        cli.main(["compare", str(folder / "run"), str(files[0])])
    assert (
        stop.value.code == 1
        and "run is a folder, not a file of transcripts: name transcripts-dev.jsonl in it" in capsys.readouterr().err
    )


def test_interval_over_speakers(tmp_path, capsys):
    paths = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    for path, said in zip(paths, ("a b", "a c")):
        rows = [
            (f"p{speaker}_{n:03d}", "a c", said if speaker < 227 else "a c")
            for speaker in range(225, 229)
            for n in (1, 2)
        ]
        write_transcripts([transcript(*row) for row in rows], path)
    out = tmp_path / "out.json"
    assert cli.main(["compare", *map(str, paths), "--intervals-over", "speaker", "--out", str(out)]) == 0
    assert (
        "8 utterances; the interval is over 4 speakers (with fewer than 20 it comes out too narrow)"
        in capsys.readouterr().out
    )
    content = json.loads(out.read_text())
    assert content["intervals_over"] == {"kind": "speaker", "count": 4}
    assert content["interval"] == pytest.approx(
        [-50, 0]
    )  # all four drawn from one half or the other: more than 2.5 % each
    with pytest.raises(SystemExit):
        cli.main(["compare", *map(str, paths), "--intervals-over", "chapter"])
    assert "the name p225_001 does not say its chapter" in capsys.readouterr().err
