"""Bad inputs in YAML files, and in what they configure."""

from tests.robustness.bad_input import Bad


def file(content, *more, option="-c"):
    """Give `fit` a YAML file of some content."""

    def arguments(folder, _):
        path = folder / "bad.yaml"
        path.write_bytes(content) if isinstance(content, bytes) else path.write_text(content)
        return ["fit", option, str(path), *more]

    return arguments


def folder_as_file(folder, _):
    return ["fit", "-c", str(folder)]


BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10))
SOLVER = "stage_two:\n  solver:\n    class_path: {}\n    init_args: {}\n"

CASES = [
    Bad("yaml-missing", ["fit", "-c", "nowhere.yaml"], "nowhere.yaml"),
    Bad("yaml-is-a-folder", folder_as_file, "place"),
    Bad("yaml-empty", file(""), "bad.yaml holds nothing: it needs sections"),
    Bad("yaml-only-comments", file("# nothing\n"), "bad.yaml holds nothing"),
    Bad("yaml-is-a-list", file("- class_path: MEMIT\n"), "bad.yaml holds a list: it needs sections"),
    Bad("yaml-is-a-word", file("memit\n"), "bad.yaml holds a str"),
    Bad("yaml-not-yaml", file("model: [1, 2\n"), "bad.yaml is not YAML"),
    Bad("yaml-tabs", file("model:\n\tmethod: x\n"), "bad.yaml is not YAML"),
    Bad("yaml-not-utf-8", file("model: {method: é}\n".encode("latin-1")), r"bad.yaml is not UTF-8 \(byte 16\)"),
    Bad("yaml-binary", file(b"\x00\x01\x02\xff"), "bad.yaml is not UTF-8"),
    Bad("yaml-aliases-unfold", file(BOMB), "bad.yaml is not YAML.*unfold to more than 100,000"),
    Bad("yaml-holds-itself", file("model: &m {method: *m}\n"), "bad.yaml is not YAML.*to themselves"),
    Bad("yaml-aliases-unfold-in-a-section", file(BOMB, option="--stage_two"), "stage_two"),
    Bad("yaml-unknown-anchor", file("model: {method: *nowhere}\n"), "bad.yaml is not YAML.*undefined alias"),
    Bad("yaml-python-object", file("model: {method: !!python/object/apply:os.getcwd []}\n"), "bad.yaml is not YAML"),
    Bad("section-unknown", file("stage_three: {lr: 1}\n"), "stage_three"),
    Bad("key-unknown", file("stage_one: {lrr: 1.0}\n"), "lrr.*Did you mean.*stage_one.lr"),
    Bad("key-of-a-part-unknown", file(SOLVER.format("LeastSquares", "{weigth: 1}")), "weigth"),
    Bad("section-is-a-number", file("stage_one: 3\n"), "stage_one"),
    Bad("value-is-a-word", file("stage_one: {lr: fast}\n"), "lr.*fast"),
    Bad("value-is-a-list", file("stage_one: {max_steps: [1, 2]}\n"), "max_steps"),
    Bad("class-unknown", file(SOLVER.format("LeastSquare", "{}")), "LeastSquare.*Did you mean.*LeastSquares"),
    Bad("class-of-another-kind", file(SOLVER.format("NormBall", "{factor: 1}")), "solver"),
    Bad("class-of-python", file(SOLVER.format("collections.OrderedDict", "{}")), "solver"),
    Bad("class-module-missing", file(SOLVER.format("nowhere.Solver", "{}")), "nowhere.Solver"),
    Bad("class-abstract", file(SOLVER.format("Solver", "{}")), "solver"),
    Bad("class-path-missing", file("stage_one: {stopping: [{init_args: {threshold: 1}}]}\n"), "stopping"),
    Bad("class-path-a-number", file(SOLVER.format("5", "{}")), "solver"),
    Bad("part-in-the-place-of-a-list", file("stage_one: {stopping: {class_path: LossBelow}}\n"), "stopping"),
    Bad("part-lacks-its-weight", file(SOLVER.format("LeastSquares", "{preservation: [{class_path: NormPenalty}]}")),
        "NormPenalty has neither a weight nor a fulfilment"),
    Bad("folder-empty", ["fit", "--trainer.default_root_dir", ""], "default_root_dir is empty"),
    Bad("published-method-unknown", ["published", "encre", "llama3-8b"], "no method 'encre': it has encore"),
    Bad("published-model-unknown", ["published", "pmet", "llama3-8b"], "pmet, has no model 'llama3-8b': it has gpt-j"),
    Bad("published-data-unknown", ["published", "memit", "gpt2-xl", "mquake"], "no data 'mquake': it has counterfact"),
    Bad("plan-of-compare-is-a-folder", lambda folder, _: ["compare", "--plan", str(folder)], "is a folder"),
]  # fmt: skip
