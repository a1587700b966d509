"""What is stored survives; what was made otherwise is refused."""

import json

import pytest

from scripts.parts.response_store import ResponseStore
from tasks.errors import UsageError

SETTINGS = {"model": "m", "temperature": 0.6}


def record(sample: int, text: str = "x") -> dict:
    return {"problem": "p", "sample": sample, "response": text}


def opened(folder, settings=SETTINGS) -> ResponseStore:
    store = ResponseStore(folder, settings, ("problem", "sample"))
    store.open()
    return store


def test_records_come_back(tmp_path):
    store = opened(tmp_path / "new")
    store.append([record(0, "first\nline"), record(1)])
    store.append([record(2, "π")])
    store.close()
    again = ResponseStore(tmp_path / "new", SETTINGS, ("problem", "sample"))
    assert again.records == {("p", i): r for i, r in enumerate([record(0, "first\nline"), record(1), record(2, "π")])}


def test_what_is_appended_is_in_the_file_at_once(tmp_path):
    store = opened(tmp_path)
    store.append([record(0)])
    assert json.loads(store.path.read_text()) == record(0)
    store.close()


@pytest.mark.parametrize("cut", [1, 10, 30])
def test_a_torn_last_line_is_dropped_and_removed(tmp_path, cut):
    store = opened(tmp_path)
    store.append([record(0), record(1)])
    store.close()
    content = store.path.read_bytes()
    store.path.write_bytes(content[:-cut])
    torn = ResponseStore(tmp_path, SETTINGS, ("problem", "sample"))
    assert torn.torn_bytes > 0
    assert list(torn.records) == [("p", 0)]
    torn.open()
    torn.append([record(1)])
    torn.close()
    assert store.path.read_bytes() == content


def test_other_settings_are_refused_and_named(tmp_path):
    opened(tmp_path).close()
    with pytest.raises(UsageError, match=r"made with temperature 0\.6, and this command asks for 1\.0"):
        ResponseStore(tmp_path, SETTINGS | {"temperature": 1.0}, ("problem", "sample"))


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(UsageError, match=r"holds something else \(thesis\.tex\)"):
        ResponseStore(tmp_path, SETTINGS, ("problem", "sample"))


def test_a_line_that_is_no_record_is_refused_by_number(tmp_path):
    opened(tmp_path).close()
    (tmp_path / "responses.jsonl").write_text('{"problem": "p", "sample": 0}\nnonsense\n')
    with pytest.raises(UsageError, match="line 2"):
        ResponseStore(tmp_path, SETTINGS, ("problem", "sample"))


def test_two_writers_are_one_too_many(tmp_path):
    first = opened(tmp_path)
    with pytest.raises(UsageError, match="Another process is writing"):
        opened(tmp_path)
    first.close()
    opened(tmp_path).close()


def test_nothing_is_written_before_it_is_opened(tmp_path):
    ResponseStore(tmp_path / "new", SETTINGS, ("problem", "sample"))
    assert not (tmp_path / "new").exists()
