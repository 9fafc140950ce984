"""MindRecord sets: damaged, edited, renamed and mixed ones are refused in one line before MindSpore can crash on them.

The table runs in a process of its own, which prints a verdict for each case, so that a signal would show.
"""
import fcntl
import json
import os
import shutil
import sqlite3
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from mindseg.data.dataset_stats import DatasetStats
from mindseg.data.datasets import dataset_info, list_samples
from mindseg.data.loader import create_loader
from mindseg.data.mindrecord import Packing, build_records
from mindseg.data.record_files import check_records
from mindseg.data.sources import RecordSource, open_source
from mindseg.errors import UserError
from tests.support import ROOT
from tests.support.data import collect, config, make_camvid, train_loader
from tests.support.hostile import (
    check_program_refuses,
    check_refused,
    files_below,
    mutation_count,
    mutation_timeout,
    run_program,
)

BLOCK, HEADER = 4096, 16 * 2 ** 20
Damage = Callable[[Path], object]


def header(change: Callable[[dict], object], shard: str = "x") -> Damage:
    """Edits the header of a data file."""
    def damage(folder: Path) -> None:
        with open(folder / shard, "r+b") as stream:
            tree = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
            put_header(folder / shard, json.dumps(change(tree) or tree).encode())

    return damage


def put_header(file: Path, text: bytes, length: int | None = None) -> None:
    with open(file, "r+b") as stream:
        stream.write((len(text) if length is None else length).to_bytes(8, "little") + text)


def at(*path: object, value: object) -> Damage:
    """Sets one entry of the header."""
    def change(tree: dict) -> None:
        for key in path[:-1]:
            tree = tree[key]
        tree[path[-1]] = value

    return header(change)


def index(*statements: str, shard: str = "x") -> Damage:
    """Runs SQL on an index."""
    def damage(folder: Path) -> None:
        with closing(sqlite3.connect(folder / f"{shard}.db")) as database:
            for statement in statements:
                database.execute(statement)
            database.commit()

    return damage


def cell(column: str, value: object) -> Damage:
    return index(f"UPDATE INDEXES SET {column} = {value} WHERE ROW_ID = 1")


def overwrite(name: str, place: int, content: bytes) -> Damage:
    def damage(folder: Path) -> None:
        with open(folder / name, "r+b") as stream:
            stream.seek(place)
            stream.write(content)

    return damage


def describe(**entries: object) -> Damage:
    """Edits the description."""
    def damage(folder: Path) -> None:
        path = folder / "x.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))

    return damage


def swap(*suffixes: str, one: str = "x", other: str = "y") -> Damage:
    """Exchanges files of two sets."""
    def damage(folder: Path) -> None:
        for suffix in suffixes:
            first, second, spare = (folder / f"{name}{suffix}" for name in (one, other, "spare"))
            first.rename(spare)
            second.rename(first)
            spare.rename(second)

    return damage


def put(name: str, content: bytes) -> Damage:
    return lambda folder: (folder / name).write_bytes(content)


def no_file(name: str, make: Callable[[Path], object]) -> Damage:
    def damage(folder: Path) -> None:
        (folder / name).unlink()
        make(folder / name)

    return damage


def view(folder: Path) -> None:
    """An index whose table is an endless query."""
    index("DROP TABLE INDEXES", "CREATE VIEW INDEXES AS WITH RECURSIVE n(ROW_ID) AS (SELECT 0 UNION ALL SELECT ROW_ID "
          "FROM n) SELECT * FROM n")(folder)


def copied(folder: Path) -> None:
    """The index of a set of the same name and length from another folder."""
    shutil.copy(folder / "other" / "x.db", folder / "x.db")


NAMES = "do not belong together"
WRONG = "not a whole MindRecord"
# Damage to the sets x and y of three samples and s of two shards, and words of the refusal.
REFUSED: dict[str, tuple[Damage, str]] = {
    "empty file": (put("x", b""), WRONG),
    "text": (put("x", b"not found" * 99), WRONG),
    "cut within the header": (lambda f: os.truncate(f / "x", 100), WRONG),
    "cut within a page": (lambda f: os.truncate(f / "x", (f / "x").stat().st_size - 1),
    "behind the file's end"),
    "header of 2^63 bytes": (lambda f: put_header(f / "x", b"{}", 2 ** 63), WRONG),
    "header of no bytes": (lambda f: put_header(f / "x", b"", 0), WRONG),
    "header that is no JSON": (lambda f: put_header(f / "x", b"{" * 50), WRONG),
    "header of brackets": (lambda f: put_header(f / "x", b"[" * 100_000), WRONG),
    "header in latin-1": (lambda f: put_header(f / "x", b'{"a": "\xe4"}'), WRONG),
    "header of a list": (lambda f: put_header(f / "x", b"[]"), WRONG),
    "header of nothing": (lambda f: put_header(f / "x", b"{}"), WRONG),
    **{f"no {key}": (header(lambda tree, key=key: tree.pop(key) and None), WRONG)
       for key in ("header_size", "page_size", "shard_id", "version", "page", "schema", "shard_addresses")},
    **{f"{key} = {value}": (at(key, value=value), WRONG) for key in ("header_size", "page_size", "shard_id")
       for value in (-1, 2 ** 62, "1", None, 1.5, True)},
    "version": (at("version", value="9.0"),
    "another version"),
    "statistics": (at("statistics", value=[{"desc": 1}]),
    "statistics"),
    "no schema": (at("schema", value=[]), WRONG),
    "schema of text": (at("schema", value=["x"]), WRONG),
    "two schemas": (header(lambda tree: tree["schema"].append(tree["schema"][0])), WRONG),
    "label of numbers": (at("schema", 0, "schema", "label", "type", value="int32"),
    "column"),
    "unknown type": (at("schema", 0, "schema", "w", value={"type": "uint128"}),
    "type of a column"),
    "wrong shape": (at("schema", 0, "schema", "w", value={"type": "int32", "shape": [2 ** 70]}),
    "type of a column"),
    "one column less": (header(lambda tree: tree["schema"][0]["schema"].pop("label") and None),
    "column"),
    "blob fields": (at("schema", 0, "blob_fields", value=["data", "label", "w"]),
    "blob fields"),
    "blob fields of numbers": (at("schema", 0, "blob_fields", value=[1, 2]), WRONG),
    "one blob field": (at("schema", 0, "blob_fields", value=["data"]),
    "blob fields"),
    "index fields": (at("index_fields", value=[{"index_field": "w", "schema_id": 0}]),
    "index fields"),
    "schema of index": (at("index_fields", 0, "schema_id", value=7),
    "index fields"),
    "page of text": (at("page", 0, value="x"), WRONG),
    "no pages": (at("page", value=[]), NAMES),
    "page number": (at("page", 0, "page_id", value=5),
    "pages"),
    "page kind": (at("page", 0, "page_type", value="X"), WRONG),
    "pages exchanged": (header(lambda tree: tree["page"].reverse()),
    "pages in wrong order"),
    "page of another shard": (at("page", 0, "shard_id", value=3),
    "pages"),
    "page too long": (at("page", 0, "page_size", value=2 ** 30),
    "behind the file's end"),
    "page shorter": (at("page", 0, "page_size", value=8), NAMES),
    "negative page": (at("page", 0, "page_size", value=-8), WRONG),
    "more rows": (at("page", 0, "end_row_id", value=4), NAMES),
    "rows backwards": (at("page", 0, "start_row_id", value=9),
                                                                                 "numbers of rows"),
    "group": (at("page", 0, "page_type_id", value=2), NAMES),
    "groups of text": (at("page", 0, "row_group_ids", value="x"), WRONG),
    "shard elsewhere": (at("shard_addresses", value=["../x"]),
    "paths"),
    "shard of another name": (at("shard_addresses", value=["y"]),
    "was built as 'y'"),
    "missing shard": (at("shard_addresses", value=["x", "nothing"]), WRONG),
    "shard twice": (at("shard_addresses", value=["x", "x"]), WRONG),
    "shard of NUL": (at("shard_addresses", value=["x\0"]),
                                                                                    "was built as"),
    "no index": (lambda f: (f / "x.db").unlink(),
    "index x.db is missing"),
    "empty index": (put("x.db", b""),
    "x.db: not a whole"),
    "index of text": (put("x.db", b"garbage" * 999),
    "x.db: "),
    "cut index": (lambda f: os.truncate(f / "x.db", 5000),
    "x.db: "),
    "index of zeros": (overwrite("x.db", 4096, bytes(4096)),
    "x.db: "),
    "no table": (index("DROP TABLE INDEXES"),
    "other tables"),
    "no name": (index("DROP TABLE SHARD_NAME"),
    "other tables"),
    "empty name": (index("DELETE FROM SHARD_NAME"), NAMES),
    "another name": (index("UPDATE SHARD_NAME SET NAME = 'y'"), "'y'"),
    "name of bytes": (index("UPDATE SHARD_NAME SET NAME = x'00'"), NAMES),
    "one table more": (index("CREATE TABLE t(a)"),
    "tables"),
    "a view": (view, "other tables"),
    "a trigger": (index("CREATE TRIGGER t AFTER INSERT ON INDEXES BEGIN SELECT 1; END"),
    "other tables"),
    "no column": (index("ALTER TABLE INDEXES RENAME COLUMN PAGE_ID_RAW TO P"),
    "other columns"),
    "no names": (index("ALTER TABLE INDEXES DROP COLUMN file_name_0"),
    "other columns"),
    "no rows": (index("DELETE FROM INDEXES"), NAMES),
    "one row less": (index("DELETE FROM INDEXES WHERE ROW_ID = 2"), NAMES),
    "one row more": (index("INSERT INTO INDEXES SELECT 3, PAGE_ID_RAW, PAGE_OFFSET_RAW, PAGE_OFFSET_RAW_END, "
                           "ROW_GROUP_ID, PAGE_ID_BLOB, PAGE_OFFSET_BLOB, PAGE_OFFSET_BLOB_END, 3, 'f' FROM INDEXES "
                           "LIMIT 1"), NAMES),
    **{f"{column} = {value}": (cell(column, value), NAMES if isinstance(value, int) else "no number")
       for column in ("ROW_ID", "PAGE_ID_RAW", "PAGE_OFFSET_RAW", "PAGE_OFFSET_RAW_END", "ROW_GROUP_ID", "PAGE_ID_BLOB",
                      "PAGE_OFFSET_BLOB", "PAGE_OFFSET_BLOB_END") for value in (-1, 2 ** 62, 99, "'abc'", "1.5")},
    "name of another": (cell("file_name_0", "'zzzz'"), NAMES),
    "name elsewhere": (cell("file_name_0", "'../x'"), "'../x'"),
    "name of a number": (cell("file_name_0", "x'31'"),
    "no text"),
    "name missing": (cell("file_name_0", "NULL"),
    "empty cell"),
    "long name": (cell("file_name_0", f"'{'a' * 5000}'"), "1000"),
    "length of an image": (overwrite("x", HEADER + 8, b"\0\0\0\0\xff\xff\xff\xff"), NAMES),
    "length of 2^64": (overwrite("x", HEADER + 8, b"\xff" * 8), NAMES),
    "index exchanged": (swap(".db"), "'y'"),
    "files exchanged": (swap(""),
    "was built as 'y'"),
    "sets exchanged": (swap("", ".db"),
    "was built as 'y'"),
    "all exchanged": (swap("", ".db", ".json"),
    "was built as 'y'"),
    "index of the same name": (copied, NAMES),
    "description exchanged": (swap(".json"), f"x.json and {{}}/x: {NAMES}"),
    "description of no names": (describe(names=None),
    "not a description"),
    "description of numbers": (describe(names=[1, 2, 3]),
    "not a description"),
    "description of a text": (describe(names="abc"), NAMES),
    "fewer names": (describe(names=["f000"]),
    "describes 1"),
    "other names": (describe(names=["f000", "f001", "f009"]), NAMES),
    "checksums of text": (describe(sha256="x"),
    "not a"),
    "other checksums": (describe(sha256={"x": "0", "x.db": "0"}), f"x.json and {{}}/x: {NAMES}"),
    "no checksums": (describe(sha256={}), NAMES),
    "description of brackets": (put("x.json", b"[" * 100_000),
    "not a description"),
    "description of a list": (put("x.json", b"[]"),
    "not a description"),
    "empty description": (put("x.json", b""),
    "not a"),
    "description in latin-1": (put("x.json", b'{"names": ["\xe4"]}'),
    "not a description"),
    **{f"{name} is {kind}": (no_file(name, make), "") for name in ("x", "x.db", "x.json") for kind, make in
       (("a folder", Path.mkdir), ("a pipe", os.mkfifo), ("a device", lambda path: path.symlink_to("/dev/zero")))},
    "shards: one missing": (lambda f: (f / "s1").unlink(),
    "s1: "),
    "shards: an index missing": (lambda f: (f / "s1.db").unlink(), ""),
    "shards: exchanged": (swap("", one="s0", other="s1"),
    "s0 and "),
    "shards: indices exchanged": (swap(".db", one="s0", other="s1"), "'s1'"),
    "shards: another schema": (header(lambda tree: tree["schema"][0].update(desc="x"),
    "s1"), NAMES),
}
READ: dict[str, Damage] = {
    "untouched": lambda folder: None, "no description": lambda folder: (folder / "x.json").unlink(),
    "older description": lambda folder: (folder / "x.json").write_text(
        json.dumps({"names": json.loads((folder / "x.json").read_text())["names"]})),
    "shards: no description": lambda folder: (folder / "s.json").unlink(),
}


def snapshot(folder: Path) -> dict[Path, tuple[int, list[tuple[int, bytes]]]]:
    """Sizes of the files, most of which are holes, and their blocks that are not zero."""
    files = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        data = path.read_bytes()
        padded = np.frombuffer(data + bytes(-len(data) % BLOCK), np.uint8).reshape(-1, BLOCK)
        files[path] = len(data), [(i * BLOCK, data[i * BLOCK:(i + 1) * BLOCK]) for i in np.flatnonzero(padded.any(1))]
    return files


def restore(folder: Path, files: dict[Path, tuple[int, list[tuple[int, bytes]]]]) -> None:
    for path in folder.iterdir():
        if path.is_symlink() or not path.is_dir():
            path.unlink()
        elif path.name != "other":
            path.rmdir()
    for path, (size, blocks) in files.items():
        with open(path, "wb") as stream:
            os.truncate(path, size)
            for place, content in blocks:
                stream.seek(place)
                stream.write(content)


def mutation_seeds() -> range:
    """Seeds of the mutations: the same in every run, others in the nightly one."""
    start = 120 * int(os.environ.get("MINDSEG_TEST_SEED", "0"))
    return range(start, start + mutation_count(120, 7500))


def mutate(folder: Path, seed: int) -> None:
    """Changes a few bytes of the header, the index, the description or the start of the pages."""
    rng = np.random.default_rng(seed)
    name, begin, end = [("x", 0, 800), ("x.db", 0, 16384), ("x.json", 0, 600), ("x", HEADER, HEADER + 40),
                        ("x.db", 8192 - 300, 8192), ("x.db", 16384 - 300, 16384)][seed % 6]
    for _ in range(int(rng.integers(1, 4))):
        overwrite(name, int(rng.integers(begin, end)), bytes([rng.integers(256)]))(folder)


def verdict(path: Path) -> str:
    """Opens a set and reads all of it."""
    try:
        source = RecordSource(path)
        rows = source.rows(list(range(len(source)))).create_dict_iterator(num_epochs=1, output_numpy=True)
        return f"read {sorted(str(row['file_name']) for row in rows)}"
    except UserError as error:
        return f"refused {error}"
    except RuntimeError as error:
        return f"stopped {str(error).splitlines()[0]}"


def main(folder: Path) -> None:
    """Prints the name and the verdict of every case, the name first."""
    files = snapshot(folder)
    cases = {**{case: damage for case, (damage, _) in REFUSED.items()}, **READ,
             **{f"mutation {seed}": lambda folder, seed=seed: mutate(folder, seed) for seed in mutation_seeds()}}
    for case, damage in cases.items():
        restore(folder, files)
        damage(folder)
        print(json.dumps(case), end=": ", flush=True)
        print(json.dumps(verdict(folder / ("s" if case.startswith("shards: ") else "x"))), flush=True)
    restore(folder, files)


def pack(root: Path, output: Path, **packing: object) -> None:
    data = config("camvid", root).data
    info = dataset_info(data)
    build_records(list_samples(data, "train"), output, info, info.label_lut(), Packing(**packing), {})


@pytest.fixture(scope="module")
def sets(tmp_path_factory) -> Path:
    """Sets x and y of three samples, s of two shards, and another x with the same names; not to be changed."""
    folder, rng = tmp_path_factory.mktemp("records"), np.random.default_rng(0)
    for name, prefix in (("x", "f"), ("y", "g"), ("other", "f")):
        make_camvid(folder / "data" / name, rng, 3, prefix=prefix)
    for source, output, shards in (("x", "x", 1), ("y", "y", 1), ("x", "s", 2), ("other", "other/x", 1)):
        pack(folder / "data" / source, folder / "sets" / output, num_shards=shards)
    return folder / "sets"


@pytest.fixture(scope="module")
def verdicts(sets) -> dict[str, str]:
    done = run_program(sys.executable, "-m", "tests.hostile.test_mindrecord", sets, cwd=ROOT,
                       timeout=mutation_timeout())
    assert done.returncode == 0, f"{done.stdout[-1000:]}\n{done.stderr[-2000:]}"
    return json.loads("{" + ",".join(line for line in done.stdout.splitlines() if line.startswith('"')) + "}")


@pytest.mark.parametrize("case", REFUSED)
def test_records_refused(case, verdicts, sets):
    kind, _, message = verdicts[case].partition(" ")
    assert kind == "refused", verdicts[case]
    assert "\n" not in message
    assert len(message) < 1000
    assert str(sets) in message
    assert REFUSED[case][1].format(sets) in message


@pytest.mark.parametrize("case", READ)
def test_records_that_are_read(case, verdicts):
    assert verdicts[case] == "read ['f000', 'f001', 'f002']"


def test_mutations_end_in_a_verdict(verdicts):
    """All of them: the process lived to its end, and what was read are the three samples under their names."""
    found = [verdicts[case] for case in verdicts if case.startswith("mutation")]
    assert len(found) == len(mutation_seeds())
    for text in found:
        assert text.startswith("refused ") or text == "read ['f000', 'f001', 'f002']", text
    assert sum(text.startswith("refused ") for text in found) > len(found) / 2


def test_sets_of_one_sample(tmp_path, rng):
    make_camvid(tmp_path / "d", rng, 1)
    for shards in (1, 2):
        pack(tmp_path / "d", tmp_path / f"x{shards}_", num_shards=shards)
        records = f"data.mindrecord={tmp_path}/x{shards}_"
        assert len(RecordSource(tmp_path / f"x{shards}_")) == 1
        assert collect(train_loader("camvid", tmp_path / "d", records), 0) == collect(
            train_loader("camvid", tmp_path / "d"), 0)
        cfg = config("camvid", tmp_path / "d", f"data.eval_mindrecord={tmp_path}/x{shards}_")
        assert [batch["names"] for batch in create_loader(cfg, "eval").samples()] == [["f000"]]
        stats = DatasetStats(open_source(cfg.data, "eval"), dataset_info(cfg.data).label_lut())
        assert (stats.samples, stats.errors) == (1, [])


def test_checks_need_no_mindspore_and_change_nothing(sets):
    before = files_below(sets)
    assert check_records(sets / "x").names == ("f000", "f001", "f002")
    assert check_records(sets / "s").count == 3
    assert check_records(sets / "s0").count == 3
    assert files_below(sets) == before


def test_foreign_sets_are_read(tmp_path):
    """With further columns, another index, several pages, and without a description, as other programs write them."""
    from mindspore.mindrecord import FileWriter

    for name, indexed in (("a", None), ("b", ["w"]), ("c", ["file_name", "w"])):
        writer = FileWriter(str(tmp_path / name), 2)
        writer.set_page_size(2 ** 15)
        writer.add_schema({"file_name": {"type": "string"}, "data": {"type": "bytes"}, "label": {"type": "bytes"},
                           "w": {"type": "int32"}, "v": {"type": "float32", "shape": [-1]}}, "foreign")
        if indexed:
            writer.add_index(indexed)
        writer.write_raw_data([{"file_name": f"n{i}", "data": bytes(9000), "label": bytes(10 * i + 1), "w": i,
                                "v": np.ones(3, np.float32)} for i in range(9)])
        writer.commit()
        assert verdict(tmp_path / name) == f"read {[f'n{i}' for i in range(9)]}"


def test_names_in_foreign_sets(tmp_path):
    from mindspore.mindrecord import FileWriter

    for name, indexed in (("a", "file_name"), ("b", "w")):
        writer = FileWriter(str(tmp_path / name))
        writer.add_schema({"file_name": {"type": "string"}, "data": {"type": "bytes"}, "label": {"type": "bytes"},
                           "w": {"type": "int32"}}, "foreign")
        writer.add_index([indexed])
        writer.write_raw_data([{"file_name": "../../x", "data": b"1", "label": b"2", "w": 1}])
        writer.commit()
        check_refused(lambda name=name: RecordSource(tmp_path / name), tmp_path / name, "'../../x'")


def test_leftovers_of_killed_builds(tmp_path, rng):
    """Those of this name are removed, unless a build lives there or other files do."""
    make_camvid(tmp_path / "d", rng, 2)
    out = tmp_path / "o"
    for folder, file in ((".x.building-1", "x.db"), (".x.building-7", ".remove"), (".x.building-2", "photo.png"),
                         (".y.building-3", "y")):
        (out / folder).mkdir(parents=True)
        (out / folder / file).write_bytes(b"1")
    (out / ".x.building-4").symlink_to(tmp_path / "d")
    (out / ".x.building-5").write_bytes(b"1")
    (out / ".x.building-6").mkdir()
    handle = os.open(out / ".x.building-6", os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)      # as a build that runs
    pack(tmp_path / "d", out / "x")
    kept = [".x.building-2", ".x.building-4", ".x.building-5", ".x.building-6", ".y.building-3", "x", "x.db", "x.json"]
    assert sorted(path.name for path in out.iterdir()) == kept
    os.close(handle)
    pack(tmp_path / "d", out / "x", overwrite=True)
    assert sorted(path.name for path in out.iterdir()) == [name for name in kept if name != ".x.building-6"]
    assert len(list((tmp_path / "d").iterdir())) == 2


@pytest.mark.parametrize("words", [("check-dataset", "--split", "train"), ("train",)])
def test_programs_refuse_a_renamed_set(words, sets, tmp_path):
    for suffix in ("", ".db"):
        (tmp_path / f"z{suffix}").symlink_to(sets / f"x{suffix}")
    done = run_program(*words, "--config", "fast_scnn_camvid", "--set", f"data.root={sets.parent / 'data' / 'x'}",
                       "--set", f"data.mindrecord={tmp_path / 'z'}", "--set", f"runtime.output_dir={tmp_path / 'runs'}")
    if words[0] == "train":
        check_program_refuses(done, tmp_path / "z", "was built as 'x'")
    else:
        assert done.returncode == 1, done.stderr
        assert "Traceback" not in done.stderr
        assert f"error: {tmp_path / 'z'}: was built as 'x'" in done.stdout


if __name__ == "__main__":
    main(Path(sys.argv[1]))
