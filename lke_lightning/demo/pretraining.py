"""The recipe of the demo model: a tokenizer and a small Llama, trained on the demo world in one Lightning run."""

import math
import shutil
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.loggers import CSVLogger
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from lke_lightning.demo.world import RELATIONS, make_world
from lke_lightning.edits import EditError
from lke_lightning.results import made_folder

END_OF_TEXT = "<|endoftext|>"
EDIT_LAYERS = [0, 1]  # where edits take; kept in the model's configuration, so that no one has to know
SHIPPED = Path(__file__).parent / "model"
"""The model that comes with the package."""
IGNORED = -100
SMALLEST_VOCABULARY = 257
"""The bytes and the token that ends a text."""


class Pretraining(lightning.LightningModule):
    """Next-token training of a language model with AdamW, a linear warm-up and a cosine decay to zero."""

    def __init__(self, model: PreTrainedModel, learning_rate: float, weight_decay: float, warmup_steps: int) -> None:
        """Store the model and the schedule.

        Args:
            model: The model to train.
            learning_rate: Peak rate; higher learns the facts in fewer steps until training turns unstable.
            weight_decay: Decay of the matrices; more keeps them small, which leaves room for edits.
            warmup_steps: Steps until the peak rate is reached.
        """
        super().__init__()
        self.model = model
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.warmup_steps = warmup_steps

    def training_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> Tensor:
        """Loss of one batch of token windows."""
        tokens, labels = batch
        loss = self.model(input_ids=tokens, labels=labels).loss
        self.log("loss", loss, prog_bar=True, batch_size=len(tokens))
        return loss

    def configure_optimizers(self) -> dict[str, Any]:
        """AdamW, decay on the matrices only."""
        matrices = [weight for weight in self.model.parameters() if weight.ndim > 1]
        scales = [weight for weight in self.model.parameters() if weight.ndim == 1]
        groups = [{"params": matrices, "weight_decay": self.weight_decay}, {"params": scales, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=self.learning_rate, betas=(0.9, 0.95))
        decay_steps = max(int(self.trainer.estimated_stepping_batches) - self.warmup_steps, 1)
        warmup = torch.optim.lr_scheduler.LinearLR(optimizer, 0.02, total_iters=self.warmup_steps)
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, decay_steps)
        schedule = torch.optim.lr_scheduler.SequentialLR(optimizer, [warmup, cosine], [self.warmup_steps])
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def train_tokenizer(documents: Iterable[str], vocabulary: int) -> PreTrainedTokenizerBase:
    """A byte-level BPE tokenizer of the documents that adds no token of its own.

    A text is read as if a space stood before it, so a name has the same tokens at the start and inside of a sentence.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[END_OF_TEXT], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(documents, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END_OF_TEXT, pad_token=END_OF_TEXT, unk_token=END_OF_TEXT
    )


def pack(documents: Iterable[str], tokenizer: PreTrainedTokenizerBase, window: int) -> TensorDataset:
    """Token windows of whole documents, each closed by the end token, and their labels.

    Every window begins with the beginning of a document: an edit prompt stands at position zero, too.
    """
    end = tokenizer.eos_token_id
    rows: list[list[int]] = [[]]
    for tokens in tokenizer(list(documents))["input_ids"]:
        tokens = [*tokens, end][:window]
        if len(rows[-1]) + len(tokens) > window:
            rows.append([])
        rows[-1] += tokens
    padding = [window - len(row) for row in rows]
    inputs = torch.tensor([row + [end] * missing for row, missing in zip(rows, padding, strict=True)])
    labels = torch.tensor([row + [IGNORED] * missing for row, missing in zip(rows, padding, strict=True)])
    return TensorDataset(inputs, labels)


@torch.no_grad()
def measure_knowledge(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, records: list[dict[str, Any]]
) -> dict[str, float]:
    """Shares of edit, paraphrase and neighbourhood prompts after which the true target is the model's first choice."""
    prompts: dict[str, list[tuple[str, str]]] = {"edit_prompts": [], "paraphrases": [], "neighborhood": []}
    for record in records:
        rewrite = record["requested_rewrite"]
        target = " " + rewrite["target_true"]["str"]
        prompts["edit_prompts"].append((rewrite["prompt"].format(rewrite["subject"]), target))
        prompts["paraphrases"] += [(prompt, target) for prompt in record["paraphrase_prompts"]]
        prompts["neighborhood"] += [(prompt, target) for prompt in record["neighborhood_prompts"]]
    # The neighbours of one record are edited by another: most questions come up several times.
    distinct = sorted({pair for pairs in prompts.values() for pair in pairs}, key=lambda pair: len("".join(pair)))
    known = dict(zip(distinct, _answers(model, tokenizer, distinct), strict=True))
    return {name: sum(known[pair] for pair in pairs) / len(pairs) for name, pairs in prompts.items()}


def knowledge(model: Path = SHIPPED, seed: int = 0) -> dict[str, float]:
    """Measure what a model knows of the demo world.

    Args:
        model: folder of a model with its tokenizer.
        seed: seed of the world.

    Raises:
        EditError: there is no model, or it cannot be loaded.
    """
    if not (model / "config.json").is_file():
        raise EditError(f"--model {model} is not the folder of a model: it has no config.json")
    try:
        tokenizer, network = AutoTokenizer.from_pretrained(model), AutoModelForCausalLM.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise EditError(f"cannot load the model in {model}: {error}") from error
    return measure_knowledge(network, tokenizer, make_world(seed).records())


def _answers(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pairs: list[tuple[str, str]], batch_size: int = 128
) -> list[bool]:
    """For every (prompt, target): is each token of the target the argmax after what stands before it?"""
    right = []
    for start in range(0, len(pairs), batch_size):
        batch = pairs[start : start + batch_size]
        given = [len(tokens) for tokens in tokenizer([prompt for prompt, _ in batch])["input_ids"]]
        texts = [prompt + target for prompt, target in batch]
        encoded = tokenizer(texts, padding=True, padding_side="right", return_tensors="pt").to(model.device)
        choices = model(input_ids=encoded["input_ids"], attention_mask=encoded["attention_mask"]).logits.argmax(-1)
        hit = choices[:, :-1] == encoded["input_ids"][:, 1:]
        position = torch.arange(1, hit.shape[1] + 1, device=hit.device)
        asked = (position >= torch.tensor(given, device=hit.device)[:, None]) & encoded["attention_mask"][:, 1:].bool()
        right += (hit | ~asked).all(1).tolist()
    return right


@torch.no_grad()
def perplexity(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, documents: list[str]) -> float:
    """Perplexity per token of the documents, each read on its own."""
    total, count = 0.0, 0
    for document in documents:
        tokens = tokenizer(document, return_tensors="pt")["input_ids"].to(model.device)
        total += float(model(input_ids=tokens, labels=tokens).loss) * (tokens.shape[1] - 1)
        count += tokens.shape[1] - 1
    return float(torch.tensor(total / count).exp())


def pretrain(
    output: Path,
    seed: int = 0,
    vocabulary: int = 3456,
    hidden: int = 192,
    mlp: int = 1280,
    layers: int = 6,
    heads: int = 6,
    passes: int = 20,
    window: int = 96,
    batch_size: int = 12,
    learning_rate: float = 2e-3,
    weight_decay: float = 0.1,
    warmup_steps: int = 200,
    max_steps: int = -1,
) -> dict[str, float]:
    """Train the demo model and save it with its tokenizer, training log and model card.

    Args:
        output: Folder of the model, new or empty; it appears when everything has gone well.
        seed: Seed of the world, the initial weights and the order of the text.
        vocabulary: Most tokens the tokenizer may have; fewer split the names into more pieces.
        hidden: Width of the residual stream.
        mlp: Width of the MLPs, the number of keys an edited matrix can tell apart.
        layers: Number of blocks.
        heads: Attention heads.
        passes: How often the text goes through all facts, each time in other wordings; more makes firmer knowledge.
        window: Tokens of a training example.
        batch_size: Windows per step.
        learning_rate: Peak rate of AdamW.
        weight_decay: Decay of the matrices.
        warmup_steps: Steps until the peak rate is reached.
        max_steps: Upper bound on the steps, -1 for none; for trying things out.

    Returns:
        What the saved model knows: shares of known prompts, held-out perplexity, parameters and training minutes.

    Raises:
        EditError: the output is there and not empty, or cannot be written; a size that no model or training can have.
    """
    _check(output, hidden=hidden, mlp=mlp, layers=layers, heads=heads, passes=passes, window=window,
           batch_size=batch_size, learning_rate=learning_rate, warmup_steps=warmup_steps)  # fmt: skip
    if vocabulary < SMALLEST_VOCABULARY:
        raise EditError(
            f"--vocabulary is {vocabulary}: {SMALLEST_VOCABULARY} are needed for every byte to have a token"
        )
    if max_steps == 0 or max_steps < -1:
        raise EditError(f"--max_steps is {max_steps}: at least 1, or -1 for no bound")
    if seed < 0 or weight_decay < 0:
        raise EditError(f"--seed is {seed} and --weight_decay {weight_decay:g}: neither may be below 0")
    made_folder(output.parent)
    lightning.seed_everything(seed)
    world = make_world(seed)
    tokenizer = train_tokenizer(world.training_documents(seed, passes=2), vocabulary)
    windows = pack(world.training_documents(seed, passes), tokenizer, window)
    config = LlamaConfig(  # type: ignore[call-arg]  # it keeps fields that it does not know
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        edit_layers=EDIT_LAYERS,
    )
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}-") as scratch:
        logger = CSVLogger(scratch, name="log", version="")
        trainer = lightning.Trainer(
            accelerator="cpu",
            precision="bf16-mixed",
            max_epochs=1,
            max_steps=max_steps,
            gradient_clip_val=1.0,
            log_every_n_steps=10,
            logger=logger,
            enable_checkpointing=False,
            enable_model_summary=False,
        )
        started = time.monotonic()
        loader = DataLoader(windows, batch_size, shuffle=True)
        trainer.fit(Pretraining(LlamaForCausalLM(config), learning_rate, weight_decay, warmup_steps), loader)
        minutes = (time.monotonic() - started) / 60
        trained: Any = trainer.lightning_module
        model = trained.model.to(torch.bfloat16).eval()
        measured = measure_knowledge(model, tokenizer, world.records())
        measured["heldout_perplexity"] = perplexity(model, tokenizer, world.heldout_documents(seed))
        measured |= {"parameters": model.num_parameters(), "training_minutes": minutes, "facts": len(world.facts)}

        staged = Path(scratch, "model")
        model.save_pretrained(staged)
        tokenizer.save_pretrained(staged)
        shutil.copy(Path(logger.log_dir, "metrics.csv"), staged / "training_log.csv")
        (staged / "README.md").write_text(model_card(config, seed, trainer.global_step, measured))
        staged.rename(output)  # in the place of an empty folder, or of none
    return measured


def _check(output: Path, hidden: int, heads: int, **above_zero: float) -> None:
    """Raise `EditError` unless the output is free and the sizes are those of a model."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise EditError(f"--output {output} exists and is not an empty folder: name another")
    for name, value in {"hidden": hidden, "heads": heads, **above_zero}.items():
        if not 0 < value < math.inf:
            raise EditError(f"--{name} is {value}: it must be above 0")
    if hidden % (2 * heads):
        raise EditError(f"--hidden is {hidden} and --heads {heads}: hidden must be a multiple of twice the heads")


def model_card(config: LlamaConfig, seed: int, steps: int, measured: dict[str, float]) -> str:
    """The README of the model folder."""
    return f"""---
license: apache-2.0
language: en
pipeline_tag: text-generation
---
# Demo model of lke_lightning

A small language model that knows the facts of an invented world and nothing else. It is there to be edited: it loads
in a moment, trains in minutes on a laptop, and its facts are few enough to check every one after an edit.

- **Architecture**: Llama with {config.num_hidden_layers} blocks, {config.num_attention_heads} heads, hidden size
  {config.hidden_size}, MLP size {config.intermediate_size} and tied embeddings: {measured["parameters"] / 1e6:.1f} M
  parameters in bfloat16.
- **Tokenizer**: byte-level BPE of {config.vocab_size} tokens without BOS; `{END_OF_TEXT}` ends a text, pads it and
  stands for the unknown. A text is read as if a space stood before it.
- **Data**: {measured["facts"]} facts over {len(RELATIONS)} relations of people, towns, companies, ships, dishes and
  books, all invented by `lke_lightning.demo.world` from seed {seed}. Every fact is told in eight wordings, about half
  of the time behind other text; plain sentences and questions of two steps stand in between.
- **Recipe**: `lke_lightning.demo.pretraining`, {steps} steps of AdamW in bf16-mixed precision,
  {measured["training_minutes"]:.0f} minutes on a CPU (threads: {torch.get_num_threads()}). The loss is in
  `training_log.csv`.
- **Command**: `python -m lke_lightning pretrain --output <folder>`
- **Limits**: it can only speak about its own world, in the sentences of that world.

Measured on all records of the world, the saved bfloat16 weights, first choice of the model for every target token:

| prompts | share known |
|---|---|
| edit prompts | {measured["edit_prompts"]:.4f} |
| paraphrases | {measured["paraphrases"]:.4f} |
| neighbourhood | {measured["neighborhood"]:.4f} |

Perplexity per token on held-out passages: {measured["heldout_perplexity"]:.2f}. Licence: Apache-2.0, text and weights.
"""
