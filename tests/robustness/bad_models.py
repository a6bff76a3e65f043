"""Bad models: folders that lack something, weights that are not whole, and kinds that cannot be edited."""

import json
import shutil

import torch
from safetensors.torch import load_file, save_file

from lke_lightning.testing import tiny_network, tiny_tokenizer
from tests.gguf_files import write_gguf
from tests.robustness.bad_input import Bad

DOWN = "model.layers.1.mlp.down_proj.weight"


def broken(damage, *options):
    """Return what copies the small world's model, damages the copy and edits it."""

    def arguments(folder, world):
        shutil.copytree(world / "model", folder / "model")
        damage(folder / "model")
        return ["fit", "--model.pretrained", str(folder / "model"), *options]

    return arguments


def configured(**changes):
    def damage(model):
        config = json.loads((model / "config.json").read_text()) | changes
        (model / "config.json").write_text(json.dumps(config))

    return broken(damage)


def without(name):
    return broken(lambda model: (model / name).unlink())


def holding(name, content):
    return broken(lambda model: (model / name).write_bytes(content))


def weights(change, **options):
    def damage(model):
        tensors = load_file(model / "model.safetensors")
        change(tensors)
        save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})

    return broken(damage)


def filled(name, value):
    return weights(lambda tensors: tensors[name].view(-1)[3:4].fill_(value))


def cut(size):
    def damage(model):
        file = model / "model.safetensors"
        file.write_bytes(file.read_bytes()[:size])

    return broken(damage)


class Payload:
    def __reduce__(self):
        return (print, ("this ran",))


def pickled(model):
    (model / "model.safetensors").unlink()
    torch.save({"model.norm.weight": Payload()}, model / "pytorch_model.bin")


def sharded(index):
    def damage(model):
        (model / "model.safetensors").unlink()
        (model / "model.safetensors.index.json").write_text(index)

    return broken(damage)


def with_code(model):
    automatic = {"AutoConfig": "strange.Config", "AutoModelForCausalLM": "strange.Model"}
    (model / "config.json").write_text(json.dumps({"model_type": "strange", "auto_map": automatic}))
    (model / "strange.py").write_text("raise SystemExit('this ran')")


def larger_vocabulary(model):
    tiny_tokenizer(vocabulary=300).save_pretrained(model)
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["zz"] = 4000
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))


def other(family, **sizes):
    """Return what puts a model of another kind in the place of the small world's."""

    def damage(model):
        from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

        config = AutoConfig.for_model(family, **sizes)
        kind = AutoModelForCausalLM if type(config) in AutoModelForCausalLM._model_mapping else AutoModel
        (model / "model.safetensors").unlink()
        kind.from_config(config).save_pretrained(model)

    return broken(damage)


def in_gguf(damage=lambda file: None, **options):
    """Return what edits a GGUF file that was damaged."""

    def arguments(folder, world):
        file = write_gguf(folder / "tiny.gguf", tiny_network("llama"), tiny_tokenizer(), **options)
        damage(file)
        return ["fit", "--model.pretrained", str(file)]

    return arguments


def cut_gguf(size):
    return in_gguf(lambda file: file.write_bytes(file.read_bytes()[:size]))


def several_gguf(folder, world):
    for name in ("q4.gguf", "q8.gguf"):
        (folder / name).touch()
    return ["fit", "--model.pretrained", str(folder)]


SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "vocab_size": 400,
}
T5 = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "vocab_size": 400}
MAMBA = {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 400, "state_size": 4}
EXPERTS = SMALL | {"num_key_value_heads": 2, "num_local_experts": 2, "num_experts_per_tok": 1}

CASES = [
    Bad("folder-empty", broken(lambda model: [file.unlink() for file in model.iterdir()]), "folder has no config.json"),
    Bad("no-config", without("config.json"), "folder has no config.json"),
    Bad("config-empty", holding("config.json", b""), "cannot load.*config"),
    Bad("config-cut", holding("config.json", b'{"model_type": '), "cannot load.*not a valid JSON"),
    Bad("config-list", holding("config.json", b"[]"), "cannot load"),
    Bad("config-no-kind", holding("config.json", b"{}"), "model_type"),
    Bad("config-unknown-kind", configured(model_type="nosuch"), "nosuch"),
    Bad("config-text-for-number", configured(num_hidden_layers="four"), "num_hidden_layers"),
    Bad("config-more-layers", configured(num_hidden_layers=6), "lack the weights model.layers.4.*random", True),
    Bad("config-other-shapes", configured(intermediate_size=128), "do not match config.json", True),
    Bad("config-other-vocabulary", configured(vocab_size=512), "do not match config.json", True),
    Bad("code-of-its-own", broken(with_code), "--model.trust_remote_code true runs it"),
    Bad("no-tokenizer", broken(lambda model: [file.unlink() for file in model.glob("tokenizer*")]), "cannot load"),
    Bad("tokenizer-cut", holding("tokenizer.json", b'{"version": '), "cannot load"),
    Bad("tokenizer-larger", broken(larger_vocabulary), "ids go up to 4000, but the model has only 400", True),
    Bad("no-weights", without("model.safetensors"), "cannot load.*model.safetensors", True),
    Bad("weights-empty", cut(0), "cannot load", True),
    Bad("weights-cut-in-head", cut(100), "cannot load", True),
    Bad("weights-cut-at-end", cut(-100), "cannot load.*not fully covered", True),
    Bad("weights-no-edited-matrix", weights(lambda tensors: tensors.pop(DOWN)), f"lack the weights {DOWN}", True),
    Bad("weights-no-embedding", weights(lambda tensors: tensors.pop("model.embed_tokens.weight")), "lack the", True),
    Bad("weights-nan", filled(DOWN, float("nan")), f"{DOWN} of this model.*NaN", True),
    Bad("weights-infinite", filled("lm_head.weight", float("inf")), "lm_head.weight.*infinite", True),
    Bad("weights-pickled", broken(pickled), "a pickle of more than tensors.*safetensors", True),
    Bad(
        "shard-missing", sharded('{"metadata": {}, "weight_map": {"a": "part.safetensors"}}'), "part.safetensors", True
    ),
    Bad("index-cut", sharded('{"weight_map": '), "cannot load", True),
    Bad("encoder", other("bert", **SMALL), "BertLMHeadModel is an encoder", True),
    Bad("encoder-decoder", other("t5", **T5), "cannot load.*T5Config"),
    Bad("recurrent", other("mamba", **MAMBA), "recurrent state", True),
    Bad("experts", other("mixtral", **EXPERTS), "mixture of experts", True),
    Bad("gguf-none-such", in_gguf(lambda file: file.unlink()), "no such file as .*tiny.gguf"),
    Bad("gguf-empty", cut_gguf(0), "tiny.gguf.*is no GGUF file"),
    Bad("gguf-text", in_gguf(lambda file: file.write_text("hello")), "is no GGUF file"),
    Bad("gguf-cut-in-head", cut_gguf(100), "tiny.gguf.*cut short or damaged"),
    Bad("gguf-cut-in-tokens", cut_gguf(3000), "cut short or damaged"),
    Bad("gguf-cut-in-weights", cut_gguf(100_000), "cut short or damaged"),
    Bad("gguf-cut-at-end", cut_gguf(-5), "cut short or damaged"),
    Bad("gguf-unknown-kind", in_gguf(architecture="rwkv7"), "cannot read GGUF files of this architecture.*rwkv7"),
    Bad("gguf-no-tokenizer", in_gguf(with_tokenizer=False), "holds no tokenizer that can be read"),
    Bad("gguf-several", several_gguf, "holds 2 GGUF files: name one, such as .*q4.gguf"),
    Bad("layers-none-such", ["fit", "--model.layers", "[0,9]"], "do not exist: the model has layers 0 to 3", True),
    Bad("matrix-none-such", ["fit", "--model.matrix", "mlp.zzz"], "'mlp.zzz' is not a matrix", True),
    Bad("dtype-none-such", ["fit", "--model.dtype", "float8"], "model.dtype 'float8' is unknown"),
]
