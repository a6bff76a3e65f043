"""Bad inputs of the parts of a method: hyperparameters of the two stages and of the guard that cannot be."""

from __future__ import annotations

from tests.robustness.bad_input import Bad

STATISTICS = "{class_path: BaseStatistics, init_args: {weight: %s}}"
PENALTY = "{class_path: NormPenalty, init_args: {weight: %s}}"
ASKING = "{class_path: BaseStatistics, init_args: {weight: null, fulfilment: %s}}"


def fit(name: str, says: str, *options: str) -> Bad:
    """Make a case of `fit` from option, value, option, value ..."""
    given = [f"--{part}" if i % 2 == 0 else part for i, part in enumerate(options)]
    return Bad(f"fit-{name}", ["fit", *given], says)


def solver(name: str, says: str, fields: str, part: str = "LeastSquares") -> Bad:
    """Make a case of `fit` with a solver of its own."""
    return fit(name, says, "stage_two.solver", f"{{class_path: {part}, init_args: {{{fields}}}}}")


def terms(*parts: str) -> str:
    """Name preservation terms."""
    return f"preservation: [{', '.join(parts)}]"


SOUND = terms(STATISTICS % 1.0, PENALTY % 1.0)

STAGE_ONE = [
    *(fit(f"lr-{value}", "stage_one.lr is .*above 0 and at most 1000", "stage_one.lr", value)
      for value in ("-1", "0", ".nan", ".inf", "1e30")),
    *(fit(f"max-steps-{value}", "stage_one.max_steps is .*at least 1", "stage_one.max_steps", value)
      for value in ("0", "-2")),
    *(fit(f"relative-lr-{value}", "stage_one.relative_lr is .*above 0 and at most 10", "stage_one.relative_lr", value)
      for value in ("-1", "0", ".nan", "11")),
    fit("max-tokens-0", "stage_one.max_tokens is 0.*at least 1", "stage_one.max_tokens", "0"),
    fit("norm-limit-1", "stage_two.norm_limit is 1.*above 1", "stage_two.norm_limit", "1"),
    fit("check-every-0", "stage_one.check_every is 0.*at least 1", "stage_one.check_every", "0"),
    fit("beside-at-the-block", "stage_one.beside .*set stage_one.site to matrix", "stage_one.beside", "attention"),
    fit("beside-chunks", "several along the answer", "stage_one.beside", "attention", "stage_one.site", "matrix",
        "stage_one.expansion", "{class_path: Chunks}"),
    fit("norm-anchor-gate", "NormAnchor.gate is 0.5.*at least 1",
        "stage_one.transform", "{class_path: NormAnchor, init_args: {gate: 0.5}}"),
    fit("no-objectives", "stage_one.objectives is empty.*NegativeLogLikelihood", "stage_one.objectives", "[]"),
    *(fit(f"{part}-{value}", f"{part}.weight is .*finite number",
          "stage_one.objectives", f"[{{class_path: {part}, init_args: {{weight: {value}}}}}]")
      for part in ("NegativeLogLikelihood", "EssenceKL", "TargetNorm") for value in ("-1", ".nan")),
    *(fit(f"{part}-{field}-{value}", f"{part}.{field} is .*finite number",
          "stage_one.stopping", f"[{{class_path: {part}, init_args: {{{field}: {value}}}}}]")
      for part, field, value in (
          ("MostProbable", "extra_steps", "-3"), ("LossBelow", "threshold", ".nan"),
          ("LossBelow", "threshold", "-0.1"), ("LossBelow", "threshold", ".inf"),
          ("ProbabilityAbove", "threshold", "1.5"), ("ProbabilityAbove", "threshold", ".nan"))),
    *(fit(f"norm-ball-{value}", "NormBall.factor is .*finite number above 0",
          "stage_one.space", f"{{class_path: NormBall, init_args: {{factor: {value}}}}}")
      for value in ("-1", "0", ".nan", ".inf")),
    fit("contexts-length-0", "ContextTemplates.length is 0.*at least 1", "stage_one.contexts.length", "0"),
    fit("contexts-length-huge", "ContextTemplates.length is 100000.*at most 1000",
        "stage_one.contexts.length", "100000"),
    fit("contexts-top-k-0", "ContextTemplates.top_k is 0.*at least 1", "stage_one.contexts.top_k", "0"),
    fit("contexts-seed-negative", "ContextTemplates.seed is -1.*at least 0", "stage_one.contexts.seed", "-1"),
    fit("contexts-seeds-blank", "ContextTemplates.seeds .*blank", "stage_one.contexts.seeds", '["I", " "]'),
    fit("contexts-template-blank", "template '' needs exactly one '{}'", "stage_one.contexts.templates", '[""]'),
    fit("contexts-template-without-slot", "'Say it.' needs exactly one '{}'",
        "stage_one.contexts.templates", '["Say it."]'),
    fit("contexts-template-with-two", "needs exactly one '{}', found 2", "stage_one.contexts.templates", '["{} {}"]'),
]  # fmt: skip

STAGE_TWO = [
    solver("no-preservation", "preservation is empty.*BaseStatistics or a NormPenalty", "preservation: []"),
    solver("no-preservation-of-equalities", "preservation is empty", "preservation: []", "EqualityConstrained"),
    solver("norm-penalty-of-0-alone", "preservation has only terms of weight 0.*above 0", terms(PENALTY % 0)),
    *(solver(f"{name}-{value}", rf"{name}\.weight is .*at least 0 and at most 1e\+15", terms(part % value))
      for name, part in (("BaseStatistics", STATISTICS), ("NormPenalty", PENALTY))
      for value in ("-1", ".nan", ".inf", "1e300")),
    *(solver(f"fulfilment-{value}", "BaseStatistics.fulfilment is .*above 0 and below 1", terms(ASKING % value))
      for value in ("0", "1", "-0.5", ".nan")),
    solver("fulfilment-beside-a-weight", "determines the weights of all, and NormPenalty has a strength of its own",
           terms(ASKING % 0.8, PENALTY % 1.0)),
    solver("fulfilment-twice", "determines the weights of all", terms(ASKING % 0.8, ASKING % 0.8)),
    solver("fulfilment-of-equalities", "written exactly: give BaseStatistics a weight, or a slack",
           terms(ASKING % 0.8), "EqualityConstrained"),
    *(solver(f"{name}-without-strength", f"{name} has neither a weight nor a fulfilment: give it one",
             terms(f"{{class_path: {name}}}")) for name in ("BaseStatistics", "NormPenalty")),
    solver("proportion--1", "NormPenalty.proportion is .*at least 0",
           terms(ASKING % 0.8, "{class_path: NormPenalty, init_args: {proportion: -1}}")),
    *(solver(f"null-space-share-{value}", "NullSpace.share is .*above 0 and below 1",
             f"{SOUND}, null_space: {{share: {value}}}") for value in ("0", "1", ".nan")),
    solver("null-space-without-strength", "NullSpace has neither a threshold nor a share: give it one",
           f"{SOUND}, null_space: {{threshold: null}}"),
    *(solver(f"past-edits-{value}", "PastEdits.weight is .*finite number above 0",
             f"{SOUND}, past_edits: {{weight: {value}}}") for value in ("-1", "0", ".nan")),
    *(solver(f"edit-weights-{value}", "EditWeights.weight is .*finite number above 0",
             f"{SOUND}, edit_weights: {{weight: {value}}}") for value in ("-1", "0", ".nan")),
    *(solver(f"null-space-{value}", "NullSpace.threshold is .*finite number above 0",
             f"{SOUND}, null_space: {{threshold: {value}}}") for value in ("-1", ".nan", ".inf")),
    *(solver(f"slack-{value}", "EqualityConstrained.slack is .*at least 0",
             f"{SOUND}, slack: {value}", "EqualityConstrained") for value in ("-0.1", ".nan")),
    solver("budget-0.5", "VirtualQueue.budget is 0.5.*at least 1", f"{SOUND}, budget: 0.5", "VirtualQueue"),
    solver("shrinking-with-statistics", "ShrinkingNullSpace solves with a NormPenalty alone",
           f"{SOUND}, null_space: {{share: 0.1}}", "ShrinkingNullSpace"),
    *(fit(f"key-filter-{value}", "SharedDirections.energy is .*above 0 and below 1",
          "stage_two.key_filter.energy", value) for value in ("0", "1", ".nan")),
    fit("key-filter-without-file", "nowhere.txt.*stage_two.key_filter.entities", "stage_two.key_filter.entities",
        "nowhere.txt"),
    *(fit(f"rect-{value}", "TopRelativeChange.keep is .*above 0 and at most 1",
          "stage_two.transform", f"{{class_path: TopRelativeChange, init_args: {{keep: {value}}}}}")
      for value in ("0", "1.5", ".nan")),
    *(fit(f"spectral-filter-{name}-{value}", f"SpectralFilter.{name} is .*above 0",
          "stage_two.transform", f"{{class_path: SpectralFilter, init_args: {{share: 0.5, {name}: {value}}}}}")
      for name, value in (("share", "0"), ("share", "1"), ("share", ".nan"), ("strength", "0"), ("strength", "2"))),
    fit("compensate-nothing", "what a transform leaves out, and there is none", "stage_two.compensate", "true"),
    Bad("fit-compensate-forgetting",
        ["fit", "-c", "configs/method/rect.yaml", "--stage_two.compensate", "true"], "keeps no memory of past edits"),
    *(fit(f"prune-{value}", "SpectralCap.base is .*above 1",
          "stage_two.readout", f"{{class_path: SpectralCap, init_args: {{base: {value}}}}}")
      for value in ("1", "-2", ".nan", ".inf")),
]  # fmt: skip

GUARD = [
    *(fit(f"guard-norm-growth-{value}", "guard.norm_growth is .*finite number above 1", "guard.norm_growth", value)
      for value in (".nan", ".inf", "1", "-1")),
    fit("guard-tokens-0", "guard.text_tokens is 0.*at least 2", "guard.text_tokens", "0"),
    fit("guard-never-gives-up", "guard.give_up_after is 0.*at least 1", "guard.give_up_after", "0"),
    fit("guard-agreement-without-text", "guard.agreement is measured on a text", "guard.agreement", "0.9"),
]  # fmt: skip

CASES = [*STAGE_ONE, *STAGE_TWO, *GUARD]
