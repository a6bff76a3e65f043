"""Bad settings of the trainer and of what it runs: they would lose edits, make them twice, or mean nothing."""

from tests.robustness.bad_input import Bad


def fit(name, says, *options, loads_model=False):
    return Bad(f"trainer-{name}", ["fit", *options], says, loads_model)


def setting(option, value, says):
    return fit(f"{option}-{value or 'empty'}", says, f"--trainer.{option}", value)


OURS = "lke_lightning.callbacks.recording.Recorder"

CASES = [
    *(setting("accumulate_grad_batches", value, "accumulate_grad_batches is .*data.batch_size") for value in "20"),
    *(setting("max_epochs", value, "max_epochs is .*edited once") for value in ("0", "2", "-1", "null")),
    setting("min_epochs", "3", "min_epochs is 3.*edited once"),
    setting("max_steps", "0", "max_steps is 0.*-1 for all"),
    setting("max_steps", "-7", "max_steps"),
    *(setting("limit_train_batches", value, "limit_train_batches is .*data.limit")
      for value in ("0", "0.5", "3", "0.0")),
    *(setting("overfit_batches", value, "overfit_batches is .*data.limit") for value in ("2", "0.3")),
    *(setting("fast_dev_run", value, "fast_dev_run is .*data.limit") for value in ("true", "1", "5")),
    setting("barebones", "true", "barebones is True.*checkpoints"),
    *(setting("precision", value, "precision is .*bf16-mixed") for value in ("16-mixed", "16", "transformer-engine")),
    setting("precision", "17", "precision"),
    *(setting("gradient_clip_val", value, "gradient_clip_val is .*stage_one.space") for value in ("1.0", "0")),
    setting("use_distributed_sampler", "true", "use_distributed_sampler is True.*order of edits"),
    setting("inference_mode", "true", "inference_mode is True"),
    setting("num_sanity_val_steps", "2", "num_sanity_val_steps is 2.*unedited"),
    *(setting("devices", value, "trainer.*devices") for value in ("0", "-3", "many")),
    *(setting("accelerator", value, f"trainer.*{says}")
      for value, says in [("gpu", "GPU|CUDA|gpu"), ("cuda", "CUDA"), ("tpu", "torch_xla"), ("mps", "MPS"),
                          ("abacus", "abacus")]),
    setting("strategy", "nonsense", "trainer.*nonsense"),
    setting("num_nodes", "0", "num_nodes"),
    setting("val_check_interval", "0", "val_check_interval"),
    fit("val_check_interval-1000", "val_check_interval.*1000", "--trainer.val_check_interval", "1000"),
    setting("check_val_every_n_epoch", "0", "check_val_every_n_epoch"),
    setting("limit_val_batches", "-1", "limit_val_batches"),
    setting("log_every_n_steps", "-1", "log_every_n_steps"),
    setting("profiler", "nonsense", "profiler"),
    setting("reload_dataloaders_every_n_epochs", "-1", "reload_dataloaders"),
    setting("max_time", "tomorrow", "tomorrow.*DD:HH:MM:SS"),
    setting("default_root_dir", "", "default_root_dir is empty"),
    setting("enable_checkpointing", "false", "enable_checkpointing.*checkpoint.keep 0"),
    setting("enable_chekpointing", "true", "enable_chekpointing.*Did you mean.*enable_checkpointing"),
    fit("callback-twice", "Recorder is there twice: leave it out of trainer.callbacks",
        "--trainer.callbacks", f"[{{class_path: {OURS}}}]"),
    fit("callback-checkpoint-twice", "RunCheckpoint is there twice",
        "--trainer.callbacks", "[{class_path: lke_lightning.callbacks.checkpoint.RunCheckpoint}]"),
    fit("callback-unknown", "callbacks", "--trainer.callbacks", "[{class_path: nowhere.Callback}]"),
    fit("callback-of-another-kind", "callbacks", "--trainer.callbacks", "[{class_path: collections.OrderedDict}]"),
    fit("callback-a-number", "callbacks", "--trainer.callbacks", "7"),
    *(fit(f"seed-{value}", f"seed_everything is {value}: a seed is 0 or more", "--seed_everything", value)
      for value in ("-1", "-5")),
    fit("seed-a-word", "seed_everything", "--seed_everything", "lucky"),
    fit("seed-beyond-its-range", "seed", "--seed_everything", "99999999999999"),
    *(fit(f"keep-{value}", f"checkpoint.keep is {value}: at least 2", "--checkpoint.keep", value)
      for value in ("1", "-2")),
    fit("checkpoint-every-negative", "every_n_train_steps is -2", "--checkpoint.every_n_train_steps", "-2"),
    fit("checkpoint-interval-negative", "train_time_interval", "--checkpoint.train_time_interval", "-1 day, 0:00:00"),
    fit("checkpoint-dirpath", "dirpath", "--checkpoint.dirpath", "elsewhere"),
    fit("checkpoint-path-nowhere", "nowhere.ckpt", "--ckpt_path", "nowhere.ckpt"),
    fit("weights-only-word", "weights_only", "--weights_only", "maybe"),
    fit("optimizer", "optimizer", "--optimizer", "Adam"),
]  # fmt: skip
