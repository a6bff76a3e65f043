"""Bad statistics: text that is none, numbers that mean nothing, folders that are files, matrices of other kinds."""

import gzip
import json

import torch
from safetensors.torch import save_file

from tests.robustness.bad_input import Bad

SECTION = "--stage_two.statistics"
NAMES = [f"model.layers.{layer}.mlp.down_proj" for layer in (0, 1)]


def corpus(name, content=None):
    """Arguments of a text file with a content: bytes, text, or records of JSON Lines; `None`: there is no file."""

    def arguments(folder, world):
        if isinstance(content, list):
            (folder / name).write_text("".join(json.dumps(record) + "\n" for record in content))
        elif content is not None:
            (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return ["fit", f"{SECTION}.corpus", str(folder / name)]

    return arguments


def cache(below="", variable=None):
    """Arguments of a cache folder at or below a file."""

    def arguments(folder, world):
        (folder / "file").write_text("mine")
        return ["fit", f"{SECTION}.cache_dir", str(folder / "file" / below)]

    return arguments


def stored(tensors=None, spoil=lambda data: data):
    """Arguments of a file of statistics; `spoil` changes its bytes."""

    def arguments(folder, world):
        path = folder / "moments.safetensors"
        if tensors is not None:
            save_file(tensors() if callable(tensors) else tensors, path)
            path.write_bytes(spoil(path.read_bytes()))
        return ["fit", SECTION, "StoredStatistics", f"{SECTION}.path", str(path)]

    return arguments


def moments(**entries):
    """Unit matrices of the small world's size, one of them with other entries."""
    found = {name: torch.eye(64) for name in NAMES}
    for row, column, value in entries.get("at", ()):
        found[NAMES[1]][row, column] = value
    return found


def a_folder(folder, world):
    (folder / "text.txt").mkdir()
    return ["fit", f"{SECTION}.corpus", str(folder / "text.txt")]


def second_missing(folder, world):
    return ["fit", f"{SECTION}.corpus", json.dumps([str(world / "text.txt"), str(folder / "nowhere.txt")])]


CASES = [
    Bad("corpus-missing", corpus("nowhere.txt"), r"no text file '.*nowhere.txt' \(stage_two.statistics.corpus\)"),
    Bad("corpus-second-missing", second_missing, r"no text file '.*nowhere.txt'"),
    Bad("corpus-a-folder", a_folder, r"no text file '.*text.txt'"),
    Bad("corpus-list-empty", ["fit", f"{SECTION}.corpus", "[]"], r"statistics.corpus names no text"),
    Bad("corpus-empty", corpus("text.txt", ""), r"text.txt' \(stage_two.statistics.corpus\) is empty"),
    Bad("corpus-blank", corpus("text.txt", "\n \n"), r"text.txt' .*holds no text"),
    Bad("corpus-not-utf-8", corpus("text.txt", b"caf\xe9\n"), r"text.txt' .*not UTF-8"),
    Bad("corpus-utf-16", corpus("text.txt", "some text".encode("utf-16")), r"text.txt' .*not UTF-8"),
    Bad("corpus-wrong-column", corpus("text.jsonl", [{"body": "a"}]), r"text.jsonl' .*no column 'text', only 'body'"),
    Bad("corpus-csv-wrong-column", corpus("text.csv", "body\na\n"), r"text.csv' .*no column 'text', only 'body'"),
    Bad("corpus-numbers", corpus("text.jsonl", [{"text": 3}]), r"record 1 of .*text.jsonl' .*must be a string"),
    Bad("corpus-broken-json", corpus("text.jsonl", '{"text": "a"\n'), r"text.jsonl' .*cannot be read: JSON"),
    Bad("corpus-broken-parquet", corpus("text.parquet", b"PAR1"), r"text.parquet' .*cannot be read"),
    Bad("corpus-gz-cut", corpus("text.txt.gz", gzip.compress(b"a b " * 999)[:20]), r"text.txt.gz' .*file ended before"),
    Bad("corpus-gz-not-packed", corpus("text.txt.gz", "text"), r"text.txt.gz' .*Not a gzipped file"),
    Bad("corpus-other-kind", corpus("text.pdf", "text"), r"text.pdf' .*there are .txt, .json"),
    Bad("corpus-no-hub-name", ["fit", f"{SECTION}.corpus", "no such/text !"], r"'no such/text !' .*neither a", True),
    Bad("corpus-too-few-tokens", corpus("text.txt", "Ana river\n"), r"fewer than the 64 entries of a key: give", True),
    Bad("tokens-too-few", ["fit", f"{SECTION}.tokens", "10"], r"gives 10 tokens, fewer than the 64 entries", True),
    Bad("tokens-zero", ["fit", f"{SECTION}.tokens", "0"], r"statistics.tokens is 0: it must be at least 1"),
    Bad("tokens-negative", ["fit", f"{SECTION}.tokens", "-5"], r"statistics.tokens is -5: it must be at least 1"),
    Bad("length-zero", ["fit", f"{SECTION}.length", "0"], r"statistics.length is 0: it must be at least 1"),
    Bad("length-negative", ["fit", f"{SECTION}.length", "-1"], r"statistics.length is -1: it must be at least 1"),
    Bad("batch-tokens-zero", ["fit", f"{SECTION}.batch_tokens", "0"], r"statistics.batch_tokens is 0: it must be"),
    Bad("cache-is-a-file", cache(), r"statistics.cache_dir cannot be .*file is a file, not a folder; name another"),
    Bad("cache-below-a-file", cache("cache"), r"statistics.cache_dir cannot be .*file is a file, not a folder"),
    Bad("cache-far-below-a-file", cache("a/b"), r"statistics.cache_dir cannot be .*file is a file, not a folder"),
    Bad("stored-missing", stored(), r"no statistics file '.*moments.safetensors' \(stage_two.statistics.path\)"),
    Bad(
        "stored-cut",
        stored(moments, lambda data: data[:3000]),
        r"moments.safetensors' .*truncated or not a safetensors",
    ),
    Bad("stored-foreign", stored(moments, lambda _: b"PK\x03\x04 a zip file"), r"moments.saf.*not a safetensors file"),
    Bad("stored-empty", stored(moments, lambda _: b""), r"moments.safetensors' .*truncated or not a safetensors file"),
    Bad("stored-no-tensor", stored({}), r"moments.safetensors' .*holds no tensor"),
    Bad("stored-integers", stored({name: torch.eye(64).long() for name in NAMES}), r"down_proj' in .*is I64 of shape"),
    Bad("stored-a-vector", stored({name: torch.ones(64) for name in NAMES}), r"of shape \(64,\): a second moment is a"),
    Bad("stored-not-square", stored({name: torch.ones(64, 32) for name in NAMES}), r"shape \(64, 32\): a second"),
    Bad("stored-other-size", stored({name: torch.eye(8) for name in NAMES}), r"are \(8, 8\), this .*\(64, 64\)", True),
    Bad("stored-other-names", stored({"weight": torch.eye(64)}), r"no statistics of 'model.layers.0.mlp", True),
    Bad(
        "stored-nan",
        stored(lambda: moments(at=[(3, 3, torch.nan)])),
        r"layers.1.*not a second moment.*not finite",
        True,
    ),
    Bad("stored-negative", stored(lambda: moments(at=[(3, 3, -1.0)])), r"not a second moment.*an entry below 0", True),
    Bad("stored-skew", stored(lambda: moments(at=[(3, 5, 0.5)])), r"not a second moment.*not symmetric", True),
]
