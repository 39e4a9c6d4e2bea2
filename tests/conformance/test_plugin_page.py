"""docs/plugins.md is followed to the letter: in a fresh environment, by the commands and files that it shows."""

import os
import re
import shlex
import site
import subprocess
import venv

import pytest

BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
SOURCES = re.compile(r"`(\w+\.(?:py|toml))`")


class Reader:
    """Somebody who reads a page with a terminal open: saves its files, types its commands."""

    def __init__(self, folder):
        self.home = folder
        self.place = folder
        environment = folder / "environment"
        venv.create(environment, with_pip=False, symlinks=True)
        self.python = environment / ("Scripts" if os.name == "nt" else "bin") / "python"
        # What is installed for these tests is seen from the fresh environment, so that nothing is downloaded.
        packages = subprocess.check_output(
            [self.python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True
        ).strip()
        parents = [path for path in site.getsitepackages() if os.path.isdir(path)]
        lines = "".join(f"import site; site.addsitedir({path!r})\n" for path in parents)
        with open(os.path.join(packages, "parent.pth"), "w", encoding="utf-8") as file:
            file.write(lines)

    def run(self, line):
        words = shlex.split(line, comments=True)
        if words[0] == "cd":
            self.place = self.place / words[1]
            return ""
        programs = {"python": [self.python], "lmrl": [self.python, "-m", "lmrl"]}
        words = [*programs[words[0]], *words[1:]]
        if "install" in words:
            words += ["--quiet", "--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
        variables = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST", "PYTHON"))}
        done = subprocess.run(words, cwd=self.place, capture_output=True, text=True, env=variables, check=False)
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def follow(self, section):
        """Save and run every block of a section; return what the commands printed."""
        printed, read = "", 0
        for block in BLOCK.finditer(section):
            before, read = section[read : block.start()], block.end()
            if block[1] == "sh":
                for line in block[2].strip().splitlines():
                    printed += self.run(line)
            else:
                name = SOURCES.findall(before)[-1]
                (self.place / name).write_text(block[2], encoding="utf-8")
        return printed


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    pytest.importorskip("hatchling", reason="hatchling, the build backend, is not installed (it is in the test extra)")
    pytest.importorskip("pip", reason="the environment of these tests has no pip")
    return Reader(tmp_path_factory.mktemp("reader"))


@pytest.fixture(scope="module")
def sections(root):
    page = (root / "docs" / "plugins.md").read_text(encoding="utf-8")
    return {part.partition("\n")[0]: part for part in page.split("\n## ")[1:]}


def follow(reader, sections, tmp_path, *headings):
    reader.place = tmp_path
    return "".join(reader.follow(sections[heading]) for heading in headings)


@pytest.mark.slow
def test_a_new_plugin_installs_passes_its_tests_and_trains(reader, sections, tmp_path):
    printed = follow(reader, sections, tmp_path, "An optimizer: two files and five minutes")
    assert "3 passed" in printed and "8 held-out prompts" in printed
    assert (tmp_path / "my_algorithm" / "runs").is_dir()


@pytest.mark.slow
def test_an_optimizer_by_hand_installs_trains_and_keeps_the_contract(reader, sections, tmp_path):
    printed = follow(reader, sections, tmp_path, "An optimizer by hand", "The conformance kit")
    assert "How far the ratio may move from 1" in printed and "8 held-out prompts" in printed and "1 passed" in printed


@pytest.mark.slow
@pytest.mark.parametrize("heading", ["A reward", "A dataset", "An engine"])
def test_a_single_file_trains(reader, sections, tmp_path, heading):
    printed = follow(reader, sections, tmp_path, heading)
    assert "8 held-out prompts" in printed
    assert ("tokens per second" in printed) == (heading == "An engine")


@pytest.mark.slow
def test_what_a_plugin_can_express_trains(reader, sections, tmp_path):
    heading = "What a plugin can express"
    assert "8 held-out prompts" in follow(reader, sections, tmp_path, heading)


@pytest.mark.slow
def test_a_benchmark_is_listed_run_and_reported(reader, sections, tmp_path):
    printed = follow(reader, sections, tmp_path, "A benchmark")
    assert "arithmetic_suite" in printed and "rloo" in printed
    assert (tmp_path / "results" / "report" / "report.html").exists()
    assert len((tmp_path / "results" / "arithmetic_suite.jsonl").read_text().splitlines()) == 8


@pytest.mark.slow
def test_a_new_benchmark_installs_passes_its_tests_and_runs_as_its_readme_says(reader, tmp_path):
    reader.place = tmp_path
    reader.run("lmrl new-plugin my_sums --kind benchmark")
    reader.place = tmp_path / "my_sums"
    printed = reader.follow((reader.place / "README.md").read_text(encoding="utf-8"))
    assert "2 passed" in printed and "my_sums" in printed
    assert (reader.place / "results" / "smoke" / "my_sums.jsonl").exists()


@pytest.mark.parametrize("name", ["plugins", "hooks"])
def test_the_columns_that_a_page_names_exist(root, name):
    from lmrl import algorithms

    batches = [getattr(algorithms, name) for name in ("Batch", "PairBatch", "LabelledBatch", "TrajectoryBatch")]
    page = (root / "docs" / f"{name}.md").read_text(encoding="utf-8")
    for variable, records in {"rollout": [algorithms.Rollout], "batch": batches}.items():
        known = {field for record in records for field in (*dir(record), *record.__dataclass_fields__)}
        named = set(re.findall(rf"(?<![\w.]){variable}\.(\w+)", page))
        assert named and named <= known


def test_the_table_of_checks_is_the_kits(sections):
    from lmrl.testing import CHECKS

    rows = re.findall(r"^\| (`.*?) \|", sections["The conformance kit"], re.MULTILINE)
    assert [name for row in rows for name in re.findall(r"`(\w+)`", row)] == list(CHECKS)


@pytest.mark.slow
def test_a_new_reward_installs_passes_its_tests_and_trains_as_the_command_says(reader, tmp_path):
    reader.place = tmp_path
    advice = reader.run("lmrl new-plugin short_words --kind reward")
    lines = [line for line in advice.splitlines() if line.startswith("  ")]
    assert "[test]" in lines[1]
    printed = "".join(reader.run(line) for line in lines)
    assert "1 passed" in printed and "short_words" in printed and "8 held-out prompts" in printed


@pytest.mark.slow
def test_a_new_dataset_and_engine_install_pass_their_tests_and_work_together(reader, tmp_path):
    reader.place = tmp_path
    for kind in ("dataset", "engine"):
        reader.run(f"lmrl new-plugin my_{kind} --kind {kind}")
    reader.run("python -m pip install -e my_dataset -e my_engine")
    assert re.search(r"5 passed", reader.run("python -m pytest my_dataset my_engine"))
    picked = "prompts.name=my_dataset engine.name=my_engine sampling.max_new_tokens=8"
    sizes = "train.updates=2 train.prompts_per_update=8 evaluation.prompts=8"
    assert "8 held-out prompts" in reader.run(f"lmrl rl {picked} {sizes}")
