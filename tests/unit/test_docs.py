"""Pages and project files agree with the sources and with each other."""
import ast
import re
from functools import cache

import pytest
import yaml

import mindseg
from mindseg.config import load_config, load_schema
from tests.support import ROOT
from tests.support.docs import COMMANDS, PAGES, TESTED, anchors, blocks, code_words, headings, links, tables
from tools import config_table

README, README_CN = ROOT / "README.md", ROOT / "README_CN.md"
DOCS = [page for page in PAGES if page.parent in (ROOT, ROOT / "docs")]
# Names in the migration tables are those of other projects; tests/system/test_migration.py looks at them.
OWN_NAMES = [page for page in DOCS if page.name != "migration.md"]
SOURCE = ROOT / "src" / "mindseg"
FOLDERS = ("src", "configs", "tools", "scripts", "tests", "docs", "benchmarks", "ascend310_infer", "weights", ".github")


def name_of(page):
    return str(page.relative_to(ROOT))


def test_the_page_of_all_keys_is_what_its_tool_writes():
    text = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert text == config_table.page(), "run python tools/config_table.py"


def test_the_model_zoo_is_what_its_tool_writes():
    """All but the counts of a network, which take minutes: those are taken from the page."""
    from tools import model_table

    path = ROOT / "docs" / "model_zoo.md"
    counts = [(row[3], row[5:5 + len(model_table.SIZES)]) for row in tables(path)[0][1:]]
    assert all(float(gmacs) > 0 for _, cells in counts for gmacs in cells)
    lines = [model_table.table_line(row, *count) for row, count in zip(model_table.ROWS, counts, strict=True)]
    assert path.read_text(encoding="utf-8") == model_table.page(lines), "run python tools/model_table.py"


def test_numbers_said_to_be_quoted_are_quoted():
    """Rows of the migration tables that send the reader to the model zoo for the older projects' numbers."""
    zoo = (ROOT / "docs" / "model_zoo.md").read_text(encoding="utf-8")
    rows = [row for table in tables(ROOT / "docs" / "migration.md") for row in table
            if len(row) == 4 and "quoted in `docs/model_zoo.md`" in row[2]]
    assert len(rows) >= 4
    for name, old, *_ in rows:
        numbers = re.findall(r"(?<![\d.])\d+\.\d+|\d{3,}", old)
        assert numbers, name
        missing = [number for number in numbers if not re.search(rf"(?<![\d.]){re.escape(number)}(?!\d)", zoo)]
        assert not missing, f"{name}: {missing}"


def test_every_key_stands_on_the_page_of_all_keys():
    rows = {row[0] for table in tables(ROOT / "docs" / "configuration.md") for row in table}
    assert {f"`{key}`" for keys in load_schema().values() for key in keys} <= rows


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    for target in links(page):
        if target.startswith(("https://", "http://")):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


@pytest.mark.parametrize("page", DOCS, ids=name_of)
def test_every_block_of_commands_or_code_says_how_it_is_tested(page):
    for block in blocks(page):
        assert block.marker or block.language not in TESTED, f"{block.place}: no <!-- test: … --> or <!-- needs: … -->"
    commands = re.findall(r"^ {4,}(?:\w+=\S+ )*(?:python|bash|msrun|mpirun|make) .*", page.read_text(), re.M)
    assert not commands, f"write them as ```bash: {commands}"


@cache
def definitions(path):
    """Names that a Python file defines: functions, classes, and methods as ``Class.method``."""
    found = set()
    for node in ast.parse((ROOT / path).read_text(encoding="utf-8")).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{item.name}" for item in node.body if isinstance(item, ast.FunctionDef)}
    return found


@pytest.mark.parametrize("page", OWN_NAMES, ids=name_of)
def test_files_and_names_in_the_text_exist(page):
    """``src/x.py``, ``src/x.py:name`` and ``tools/x.py --flag`` between backquotes."""
    for word in code_words(page):
        match = re.match(rf"((?:{'|'.join(map(re.escape, FOLDERS))})/[\w./*-]+)(?::([\w.]+))?", word)
        if match is None or "…" in word or "<" in word:
            continue
        path = match[1].rstrip("/")
        assert list(ROOT.glob(path)) or made_by_users(path), word
        assert not match[2] or match[2] in definitions(path), word


def made_by_users(path):
    return path.startswith(("ascend310_infer/out", "ascend310_infer/build", "weights/"))


@pytest.mark.parametrize("page", OWN_NAMES, ids=name_of)
def test_keys_in_the_text_exist(page):
    """``section.key`` between backquotes, alone or with ``=value`` or ``: value`` behind it."""
    schema = load_schema()
    for word in code_words(page):
        match = re.match(rf"(?:--set )?({'|'.join(schema)})\.(\w+)(?=$|[=:., ])", word)
        if match and not re.match(r"(ckpt|csv|html|json|log|mindrecord|py|safetensors|txt|yaml)\b", match[2]):
            assert match[2] in schema[match[1]], word


@pytest.mark.parametrize("page", DOCS, ids=name_of)
def test_configurations_on_the_page_load(page, tmp_path):
    """Blocks that begin with ``_base_``, at the place that their base names are relative to."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "own" / "mine").mkdir(parents=True)
    (tmp_path / "own" / "_base_").symlink_to(ROOT / "configs" / "_base_")
    for block in blocks(page):
        if block.language == "yaml" and "_base_:" in block.text:
            folder = tmp_path / "own" / "mine" if "../_base_" in block.text else tmp_path
            (folder / "page.yaml").write_text(block.text, encoding="utf-8")
            load_config(folder / "page.yaml")


def imports(path):
    """Modules that a file imports, at its top or inside a function."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


@pytest.mark.parametrize("folder", ["src", "tools", "benchmarks", "tests"])
def test_docstrings_begin_with_what_a_thing_is_or_does(folder):
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                words = (ast.get_docstring(node) or "").split()
                assert not words or words[0] not in ("What", "Where", "How", "Whether"), (path, node)


class TestArchitecture:
    """The layers of docs/architecture.md, and its rules that the layer contract of pyproject.toml cannot state."""

    ROWS = tables(ROOT / "docs" / "architecture.md")[0][1:]

    def test_layers_are_those_of_the_contract(self):
        text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
        layers = re.findall(r'^    "(.+)",$', re.search(r"^layers = \[\n(.+?)^\]", text, re.M | re.S)[1], re.M)
        found = [[] for _ in layers]
        for number, modules, _ in self.ROWS:
            found[int(number) - 1] += re.findall(r"`(\w+)`", modules)
        assert found == [layer.split(" : ") for layer in layers]

    def test_every_module_of_a_folder_is_listed(self):
        for _, modules, content in self.ROWS:
            folder = SOURCE / modules.strip("`")
            listed = {f"{name}.py" for name in re.findall(r"`(\w+)\.py`", content)}
            files = {path.name for path in folder.glob("*.py")} - {"__init__.py"} if folder.is_dir() else set()
            assert listed <= files, folder
            assert folder.name == "models" or listed == files, folder

    def test_only_the_runtime_sets_the_context_and_only_commands_parse(self):
        for path in SOURCE.rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            assert path.parent.name == "commands" or "argparse" not in list(imports(path)), path
            sets = re.search(r"\bset_(context|device|mode)\(", text)
            assert path.name in ("runtime.py", "compat.py") or not sets, path


class TestReadmes:
    """README.md and README_CN.md say the same."""

    def test_headings(self):
        assert [level for level, _ in headings(README)] == [level for level, _ in headings(README_CN)]

    def test_blocks_are_identical(self):
        def content(page):
            return [(block.language, block.text, block.marker, block.output) for block in blocks(page)]

        assert content(README) == content(README_CN)

    def test_tables_have_one_shape_and_the_same_numbers(self):
        def numbers(page):
            return [[[sorted(re.findall(r"\d+(?:\.\d+)?", cell)) for cell in row] for row in table]
                    for table in tables(page)]

        assert numbers(README) == numbers(README_CN)

    def test_links(self):
        assert set(links(README)) ^ set(links(README_CN)) == {"README.md", "README_CN.md"}

    def test_every_page_is_linked(self):
        assert {f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")} <= set(links(README))

    def test_figures_measured_here_stand_in_the_results_page(self):
        """The first table with percentages is ours; the page of results has the command behind each of them."""
        results = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
        ours = next(table for table in tables(README) if any("mIoU" in cell for cell in table[0]))
        found = [figure for row in ours[1:] for cell in row for figure in re.findall(r"(\d+\.\d+) %", cell)]
        known = {f"{factor * float(number):.2f}" for number in re.findall(r"\d+\.\d+", results) for factor in (1, 100)}
        assert found
        assert set(found) <= known


class TestProjectFiles:
    """One version, one list of linters, one set of targets."""

    def test_version_stands_in_one_place(self):
        citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
        assert citation["version"] == mindseg.__version__
        assert citation["cff-version"] == "1.2.0"
        assert {"title", "message", "authors"} <= set(citation)
        newest = next(title for level, title in headings(ROOT / "CHANGELOG.md") if level == 2)
        assert newest.split()[0] == mindseg.__version__

    def test_commits_are_checked_by_the_linters_of_make_lint(self):
        config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
        hooks = [hook["entry"] for repo in config["repos"] for hook in repo["hooks"]]
        recipe = re.search(r"^lint:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.M)[1]
        linters = [line.split() for line in recipe.strip().splitlines()]
        assert len(hooks) == len(linters)
        for hook, words in zip(hooks, linters, strict=True):
            options = [word for word in words if word.startswith("--")]
            assert hook.split()[0] == words[0]
            assert [word for word in hook.split() if word.startswith("--")] == options

    def test_workflows_call_targets_of_the_makefile(self):
        targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
        called = set()
        for file in (ROOT / ".github" / "workflows").glob("*.yml"):
            workflow = yaml.safe_load(file.read_text(encoding="utf-8"))
            steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
            called |= {target for step in steps for target in re.findall(r"^make ([\w-]+)", step.get("run", ""))}
        assert {"lint", "test", "test-all"} <= called <= targets

    def test_templates_can_be_read(self):
        forms = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
        assert len(forms) >= 2
        for form in forms:
            tree = yaml.safe_load(form.read_text(encoding="utf-8"))
            assert "blank_issues_enabled" in tree or {"name", "description", "body"} <= set(tree), form.name
        assert (ROOT / ".github" / "pull_request_template.md").is_file()

    def test_pictures_are_small(self):
        pictures = list((ROOT / "docs" / "images").glob("*"))
        assert pictures
        assert all(picture.stat().st_size < 200_000 for picture in pictures)


def test_commands_are_found_in_pages():
    """The checks above would pass on pages that they cannot read."""
    found = [block for page in DOCS for block in blocks(page) if block.language in COMMANDS]
    assert len(found) > 20
    assert {block.marker.split(":")[0] for block in found} == {"test", "needs"}

