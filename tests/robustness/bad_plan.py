"""Bad inputs of `plan`: its own options, a model of which there is no usable configuration, a machine too small."""

import json

from lke_lightning.testing import tiny_network
from tests.robustness.bad_input import Bad


def planned(*more):
    """Plan the small world with something bad."""

    def arguments(folder, world):
        given = [part(folder) if callable(part) else part for part in more]
        return [
            "plan", "-c", "configs/method/encore.yaml", "--trainer.accelerator", "cpu", "--model.layers", "[0,1]",
            "--model.pretrained", str(world / "model"), "--data", "JsonLines",
            "--data.path", str(world / "facts.jsonl"), *given,
        ]  # fmt: skip

    return arguments


def empty(folder):
    """Name an empty folder."""
    return str(folder)


def with_configuration(text):
    """Make a model's folder that holds this as its configuration."""

    def make(folder):
        (folder / "config.json").write_text(text)
        return str(folder)

    return make


def with_sizes(**sizes):
    """Make a model's folder with the configuration of a network of other sizes."""

    def make(folder):
        config = tiny_network("llama").config
        config.update(sizes)
        config.save_pretrained(folder)
        return str(folder)

    return make


CASES = [
    Bad("plan-measure-unknown", planned("--measure", "maybe"), r"--measure.*'maybe'.*true.*false"),
    Bad("plan-json-is-a-folder", planned("--json", empty), "--json .* is a folder: name a file"),
    Bad("plan-unknown-option", planned("--mesure", "false"), "mesure"),
    Bad("plan-layers-beyond-the-model", planned("--model.layers", "[99]"), r"layers \[99\] do not exist"),
    Bad("plan-no-records", planned("--data.path", "nowhere.jsonl"), "nowhere.jsonl"),
    Bad("plan-several-processes", planned("--trainer.devices", "2"), "one process, not 2: give --trainer.devices 1"),
    Bad("plan-no-configuration", planned("--model.pretrained", empty), "model.pretrained .*: give its folder"),
    Bad(
        "plan-configuration-cut-short",
        planned("--model.pretrained", with_configuration('{"model_type": "lla')),
        "cannot read the configuration",
    ),
    Bad(
        "plan-not-a-causal-model",
        planned("--model.pretrained", with_configuration(json.dumps({"model_type": "t5"}))),
        "cannot read the configuration of a causal language model",
    ),
    Bad(
        "plan-larger-than-the-memory",
        planned("--model.pretrained", with_sizes(hidden_size=2**17, intermediate_size=2**19)),
        r"the run needs [\d.,]+ TiB of memory, but this machine has .*: try --model.dtype",
    ),
]
