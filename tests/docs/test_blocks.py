"""Every command of the pages is one that the program takes, every piece of Python runs or at least finds its names.

A block says what it is: `sh`, `python`, `json`, `yaml`; `text` is what a program prints, `{eval-rst}` is for the site.
In commands, `...` stands for arguments that the reader adds, and is left out here.
"""

import ast
import importlib
import json
import re
import shlex
import tomllib

import pytest
import yaml
from torch.distributed.run import get_args_parser

from lke_lightning import cli, fitting
from lke_lightning.data import own_request
from tests.docs.pages import PAGES, ROOT, blocks, name, tokens

LANGUAGES = {"sh", "python", "json", "yaml", "text", "{eval-rst}"}
COMMAND = re.compile(r"python -m |make \w|pip |torchrun ")
WRITTEN = {"attach": "`export --format module` writes it"}
NOT_HERE = {"srun": "SLURM is not on this machine: what it starts is checked"}

FOREIGN = {"lm_eval": "what follows is for lm-eval, which need not be here"}


@pytest.fixture(scope="module")
def parsers():
    """What `fit` and `validate` parse with, by name; nothing is read, made or run."""

    class ReadyError(Exception):
        """The parser is there."""

    def keep(cli, parser, args):
        raise ReadyError(parser)

    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fitting.EditCLI, "parse_arguments", keep)
        for command in ("fit", "validate"):
            with pytest.raises(ReadyError) as caught:
                fitting.run([command])
            [found[command]] = caught.value.args
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where a reader's commands run: the repository, where what they write stays in here."""
    root = tmp_path_factory.mktemp("reader")
    for part in ("configs", "tests", "lke_lightning"):
        (root / part).symlink_to(ROOT / part)
    (root / "ME-PPL_50.json").write_text(json.dumps([{"Text": "A text of the reader's."}]))  # looked at while parsing
    return root


def commands(text):
    """Yield the commands of a block, as words; comments and what stands for the reader's own are left out."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line.replace("-c ...", ""), comments=True)
        if words:
            yield [word for word in words if word != "..."]


def check(words):
    """Check a command as far as is cheap.

    Yield what remains to be parsed by the parser of `fit` or `validate`: its name and the arguments.
    """
    program, *rest = words
    if program in NOT_HERE:
        yield from check(rest[next(i for i, word in enumerate(rest) if not word.startswith("-")) :])
    elif program == "make":
        assert re.search(rf"^\.PHONY:.* {rest[0]}\b", (ROOT / "Makefile").read_text(), re.MULTILINE), words
    elif program == "pip":
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        asked = [extra for word in rest for extra in re.findall(r"\[(.*)\]", word)]
        assert {*asked} <= {*project["optional-dependencies"]}, words
    elif program == "torchrun":
        given = get_args_parser().parse_args(rest)
        assert given.module
        yield from check(["python", "-m", given.training_script, *given.training_script_args])
    else:
        assert words[:3] == ["python", "-m", "lke_lightning"], words
        yield from parsed(*words[3:])


def parsed(command, *arguments):
    """Parse the arguments of one of our commands; yield those that are for `fit` or `validate`, and for which."""
    ours, _, fits = " ".join(map(shlex.quote, arguments)).partition(" -- ")
    ours, fits = shlex.split(ours), shlex.split(fits)
    if command in ("fit", "validate"):
        yield command, ours
    elif cli.COMMANDS[command].fits:
        handed = []
        with pytest.raises(KeyboardInterrupt):
            cli._function(command)(ours, lambda given, instead: handed.append(given) or interrupt())
        yield "fit", handed[0]
    elif command == "published":
        cli.main([command, *ours])  # takes no time, and other commands read what it writes
    else:
        cli._parser(command).parse_args([*ours, "--", *fits] if fits else ours)
        if fits and command not in FOREIGN:
            yield "fit", fits


def interrupt():
    """End a command before it does anything."""
    raise KeyboardInterrupt


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_blocks_say_what_they_are(page):
    for token in tokens(page):
        if token.type == "fence":
            assert token.info in LANGUAGES, f"line {token.map[0] + 1}"
            assert token.info == "sh" or not COMMAND.match(token.content), f"line {token.map[0] + 1} is a command"


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "sh")], ids=name)
def test_commands_are_understood(page, parsers, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    left = {"fit": [], "validate": []}
    words = []
    try:
        for _, text in blocks(page, "sh"):
            for words in commands(text):
                for command, arguments in check(words):
                    left[command] += arguments  # parsed together: a fifth of a second each
        for command, words in left.items():
            if words:
                parsers[command].parse_args([command, *words])
    except SystemExit as error:
        said = (capsys.readouterr().err or str(error)).strip().splitlines()
        pytest.fail(f"{shlex.join(words)}: {said[-1]}", pytrace=False)


def test_facts_are_facts_and_sections_are_sections(parsers, tmp_path):
    for page in PAGES:
        for _, text in blocks(page, "json"):
            assert [own_request(json.loads(line)) for line in text.splitlines()]
        for _, text in blocks(page, "yaml"):
            assert yaml.safe_load(text)
            (tmp_path / "section.yaml").write_text(text)
            parsers["fit"].parse_args(["fit", "-c", str(tmp_path / "section.yaml")])


def test_python_compiles_and_finds_what_it_imports():
    for page in PAGES:
        for line, text in blocks(page, "python"):
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.Import):
                    assert [importlib.import_module(alias.name) for alias in node.names]
                elif isinstance(node, ast.ImportFrom) and node.module not in WRITTEN:
                    module = importlib.import_module(node.module)
                    assert all(hasattr(module, alias.name) for alias in node.names), f"{name(page)}, line {line}"


def test_what_the_pages_do_from_python_works(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    names = {}
    [(_, readme)] = blocks(ROOT / "README.md", "python")
    exec(readme, names)
    assert capsys.readouterr().out.startswith("[' Zesi")
    assert (folder / "runs" / "first" / "ledger.jsonl").is_file()
    names["edited"].edit([{**names["facts"][0], "id": "4711"}]).save("runs/capitals")
    more = [{"prompt": "Captain Queros Beajevur speaks", "target": "Bofaian", "subject": "Captain Queros Beajevur"}]
    [(_, running)] = blocks(ROOT / "docs" / "running.md", "python")
    exec(running, names := {"more_facts": more})
    assert len(names["model"].edited) == 1
