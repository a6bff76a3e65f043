"""Bad facts: every field of your own, published formats of another form, and files that are not what they say."""

import bz2
import gzip
import json
import lzma

from tests.robustness.bad_input import Bad

GOOD = {"prompt": "Ana was born in the", "subject": "Ana", "target": "city"}


def file(content, name="facts.jsonl", kind="JsonLines"):
    """Return what writes a file, as text or bytes, and names it on the command line."""

    def arguments(folder, _):
        path = folder / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return ["fit", "--data", kind, "--data.path", str(path)]

    return arguments


def line(*records, **changes):
    """Return a file of good records, the last of them changed."""
    return file("\n".join(map(json.dumps, [*records, GOOD | changes])))


def without(name):
    return file(json.dumps({key: value for key, value in GOOD.items() if key != name}))


def published(kind, record):
    return file(json.dumps([record]), "published.json", kind)


def folder_for_file(folder, _):
    (folder / "facts").mkdir()
    return ["fit", "--data.path", str(folder / "facts")]


ASKED = {"prompt": "Bob was born in the", "answer": "river"}
COUNTERFACT = {
    "case_id": 1,
    "requested_rewrite": {
        "prompt": "{} was born in the", "subject": "Ana", "target_new": {"str": "city"}, "target_true": {"str": "river"}
    },
}  # fmt: skip
REWRITE = COUNTERFACT["requested_rewrite"]
UNTRUE = REWRITE | {"target_true": None}
ZSRE = {"src": "Where is Ana?", "subject": "Ana", "answers": ["city"], "rephrase": "Ana?", "loc": "who", "loc_ans": "a"}
CASE = {
    "case_id": 1, "questions": ["Where?"], "new_answer": "city", "new_answer_alias": [],
    "requested_rewrite": [REWRITE | {"relation_id": "P1", "question": "Where is Ana?"}],
}  # fmt: skip
KNOWEDIT = {"prompt": "Ana is in the", "subject": "Ana", "target_new": "city", "locality": {}, "portability": {}}
QAEDIT = {"id": 1, "source": "NQ", "prompt": "Where is Ana?", "subject": "Ana", "target": "city", "rephrase": "Ana?",
          "locality": [{"loc": "who", "loc_ans": "a"}]}  # fmt: skip
UNKE = {"id": 1, "question": "Why?", "para_question": "How come?", "answer": "So.", "sub_question": ["When?"],
        "sub_answer": ["Now."]}  # fmt: skip
AKEW = {"case_id": 1, "requested_rewrite": [{"subject": "Ana", "question": "Where is Ana?", "fact_new_uns": "In it."}]}

OWN = [
    Bad("prompt-missing", without("prompt"), "record 0: field 'prompt' is missing"),
    Bad("prompt-null", line(prompt=None), "record 0: field 'prompt' is null"),
    Bad("prompt-empty", line(prompt=" "), "field 'prompt' is empty"),
    Bad("prompt-number", line(prompt=3), "field 'prompt' is a number, not a text"),
    Bad("prompt-list", line(prompt=["Ana is"]), "field 'prompt' is a list, not a text"),
    Bad("prompt-two-slots", line(prompt="{} and {} are"), "needs exactly one '{}', found 2"),
    Bad("prompt-other-braces", line(prompt="{} is {a}"), "braces besides its"),
    Bad("prompt-braces-without-subject", line(prompt="It is {}", subject=None), "braces but no subject"),
    Bad("prompt-half-a-character", line(prompt="Ana \ud800 is"), "'prompt' has half a character"),
    Bad("target-missing", without("target"), "field 'target' is missing"),
    Bad("target-null", line(target=None), "field 'target' is null"),
    Bad("target-blank", line(target="\n"), "field 'target' is empty"),
    Bad("target-object", line(target={"str": "city"}), "field 'target' is an object, not a text"),
    Bad("target-true", line(target=True), "field 'target' is true or false, not a text"),
    Bad("subject-elsewhere", line(subject="Bob"), "'Bob' is not in the prompt"),
    Bad("subject-letter-case", line(subject="ana"), "'ana' is not in the prompt.*letter case counts"),
    Bad("subject-empty", line(subject=""), "field 'subject' is empty"),
    Bad("subject-number", line(subject=7), "field 'subject' is a number"),
    Bad("subject-twice", line(prompt="Ana and Ana"), "occurs 2 times"),
    Bad("subject-decomposed", line(prompt="Zo\u00eb is", subject="Zoe\u0308"), r"look alike.*Zoe\\u0308.*NFC"),
    Bad("subject-full-width", line(prompt="Ana is", subject="\uff21na"), r"look alike.*\\uff21na.*NFKC"),
    Bad("original-empty", line(original=""), "field 'original' is empty"),
    Bad("original-list", line(original=["river"]), "field 'original' is a list"),
    Bad("relation-object", line(relation={"id": 3}), "field 'relation' is an object"),
    Bad("paraphrases-text", line(paraphrases="Ana is in"), "field 'paraphrases' is a text, not a list"),
    Bad("paraphrases-empty", line(paraphrases=["Ana is", ""]), r"'paraphrases'\[1\] is empty"),
    Bad("paraphrases-null-inside", line(paraphrases=[None]), r"'paraphrases'\[0\] is null"),
    Bad("paraphrases-slot", line(paraphrases=["{} is in"]), "spell the subject out"),
    Bad("neighborhood-text", line(neighborhood="Bob is"), "field 'neighborhood' is a text, not a list"),
    Bad("neighborhood-object", line(neighborhood=ASKED), "field 'neighborhood' is an object, not a list"),
    Bad("neighborhood-no-answer", line(neighborhood=["Bob is"]), "prompt that needs its answer"),
    Bad(
        "neighborhood-answer-null", line(neighborhood=[ASKED | {"answer": None}]), r"'neighborhood\[0\].answer' is null"
    ),
    Bad(
        "neighborhood-answer-empty", line(neighborhood=[ASKED | {"answer": ""}]), r"'neighborhood\[0\].answer' is empty"
    ),
    Bad(
        "neighborhood-misspelt", line(neighborhood=[{"promt": "a"}]), r"'neighborhood\[0\].promt' is unknown.*'prompt'"
    ),
    Bad("neighborhood-number", line(neighborhood=[3]), r"'neighborhood\[0\]' is a number"),
    Bad("portability-text", line(portability="Where?"), "field 'portability' is a text"),
    Bad("portability-prompt-alone", line(portability=["Where?"]), r"'portability\[0\]' is a prompt that needs"),
    Bad(
        "portability-aliases-text",
        line(portability=[ASKED | {"aliases": "a"}]),
        r"'portability\[0\].aliases' is a text",
    ),
    Bad("two-hop-object", line(two_hop=ASKED), "field 'two_hop' is an object, not a list"),
    Bad("two-hop-empty-prompt", line(two_hop=[ASKED | {"prompt": " "}]), r"'two_hop\[0\].prompt' is empty"),
    Bad("aliases-text", line(aliases="town"), "field 'aliases' is a text, not a list"),
    Bad("generation-text", line(generation="Ana says"), "field 'generation' is a text, not a list"),
    Bad("references-number", line(references=[1]), r"'references'\[0\] is a number"),
    Bad("weight-nan", line(weight=float("nan")), "the weight nan of an edit must be a number from 1e-06"),
    Bad("weight-zero", line(weight=0), "the weight 0 "),
    Bad("weight-negative", line(weight=-1), "the weight -1 "),
    Bad("weight-huge", line(weight=1e308), r"the weight 1e\+308"),
    Bad("weight-infinite", line(weight=float("inf")), "the weight inf "),
    Bad("weight-tiny", line(weight=1e-300), "the weight 1e-300"),
    Bad("weight-text", line(weight="2"), "the weight '2'"),
    Bad("weight-true", line(weight=True), "the weight True"),
    Bad("id-fraction", line(id=1e30), r"field 'id' is the number 1e\+30, which is not whole"),
    Bad("id-list", line(id=[1]), "field 'id' is a list"),
    Bad("id-empty", line(id=""), "field 'id' is empty"),
    Bad("id-twice", line(GOOD | {"id": "a"}, id="a"), "several records with the id 'a'"),
    Bad("id-number-and-text", line(GOOD | {"id": 7}, id="7"), "several records with the id '7'"),
    Bad("id-huge-twice", line(GOOD | {"id": 10**30}, id=10**30), "id '1000000000000000000000000000000'"),
    Bad("field-misspelt", line(paraphrase=["Ana is"]), "field 'paraphrase' is unknown: did you mean 'paraphrases'"),
    Bad("field-unknown", line(zzz=1), "field 'zzz' is unknown: there are prompt, target"),
    Bad("second-record", line(GOOD, GOOD, target=None), "record 2: field 'target' is null"),
]
PUBLISHED = [
    Bad("counterfact-flat", published("CounterFact", GOOD), "'requested_rewrite' is missing"),
    Bad("counterfact-null", published("CounterFact", {"case_id": 1, "requested_rewrite": UNTRUE}),
        "'requested_rewrite.target_true' is null"),
    Bad("counterfact-text", published("CounterFact", COUNTERFACT | {"paraphrase_prompts": "Ana"}),
        "'paraphrase_prompts' is a text, not a list"),
    Bad("counterfact-empty-neighbor", published("CounterFact", COUNTERFACT | {"neighborhood_prompts": [""]}),
        r"'neighborhood_prompts'\[0\] is empty"),
    Bad("counterfact-list", published("CounterFact", COUNTERFACT | {"requested_rewrite": [REWRITE]}),
        "'requested_rewrite' is a list, not an object"),
    Bad("zsre-no-answers", published("ZsRE", ZSRE | {"answers": []}), "'answers' is an empty list"),
    Bad("zsre-answers-text", published("ZsRE", ZSRE | {"answers": "city"}), "'answers' is a text, not a list"),
    Bad("zsre-loc-null", published("ZsRE", ZSRE | {"loc_ans": None}), "'loc_ans' is null"),
    Bad("mquake-no-edits", published("MQuAKE", {"case_id": 1}), "'requested_rewrite' is missing"),
    Bad("mquake-questions-text", published("MQuAKE", CASE | {"questions": "Where?"}), "'questions' is a text, not"),
    Bad("mquake-triples", published("MQuAKE", CASE | {"orig": {"edit_triples": [["a", "b"]]}}), "has 2 entries"),
    Bad("knowedit-target", published("KnowEdit", KNOWEDIT | {"target_new": ["city"]}), "'target_new' is a list"),
    Bad("knowedit-locality", published("KnowEdit", KNOWEDIT | {"locality": ["a"]}), "'locality' is a list, not"),
    Bad("knowedit-answers", published("KnowEdit", KNOWEDIT | {"locality": {"a": [{"prompt": "b", "ground_truth": 3}]}}),
        "'ground_truth' is a number"),
    Bad("wikibio-null", published("WikiBio", {"text": "a", "labels": None, "locality": {}}), "'labels' is null"),
    Bad("qaedit-locality", published("QAEdit", QAEDIT | {"locality": "who"}), "'locality' is a text, not a list"),
    Bad("qaedit-no-source", published("QAEdit", QAEDIT | {"source": None}), "'source' is null"),
    Bad("wikibigedit-number", published("WikiBigEdit", {"update": 3, "ans": "a"}), "'update' is a number"),
    Bad("unke-parts", published("UnKE", UNKE | {"sub_answer": []}), "1 of 'sub_question' and 0 of 'sub_answer'"),
    Bad("unke-answer", published("UnKE", UNKE | {"answer": ""}), "'answer' is empty"),
    Bad("akew-edit", published("AKEW", AKEW | {"requested_rewrite": ["a"]}), r"'requested_rewrite\[0\]' is a text"),
    Bad("editeverything-question", published("EditEverything", {"id": 1, "answer": "a"}), "'question' is missing"),
]  # fmt: skip
TEXT = json.dumps(GOOD)
FILES = [
    Bad("file-empty", file(""), "the file is empty"),
    Bad("file-blank-lines", file("\n\n"), "the file is empty"),
    Bad("file-empty-list", file("[]", "facts.json"), "no edits"),
    Bad("file-not-json", file("prompt,target\na,b"), "line 1, column 1"),
    Bad("file-cut", file(TEXT + "\n" + TEXT[:20]), "line 2, column"),
    Bad("file-pretty", file(json.dumps(GOOD, indent=1)), "line 2, column 1.*one object per line"),
    Bad("file-list-cut", file("[\n" + TEXT + ",\n" + TEXT[:20], "facts.json"), "line 3, column"),
    Bad("line-list", file(TEXT + "\n3"), "line 2: a record must be a JSON object, this is a number"),
    Bad("entry-text", file('["a"]', "facts.json"), "record 0: a record must be a JSON object, this is a text"),
    Bad("field-twice", file(TEXT[:-1] + ', "target": "river"}'), "line 1: field 'target' occurs twice"),
    Bad("nested-deeply", file("[" * 100_000), "nested too deeply"),
    Bad("number-of-many-digits", file('{"id": ' + "9" * 5000 + "}"), "line 1: .*digits"),
    Bad("file-latin-1", file((TEXT + "\n" + TEXT.replace("city", "cité")).encode("latin-1")),
        "line 2: the byte 0xe9 is not UTF-8.*iconv"),
    Bad("list-latin-1", file(("[\n" + TEXT.replace("city", "cité") + "]").encode("latin-1"), "facts.json"),
        "line 2: the byte"),
    Bad("file-utf-16", file(TEXT.encode("utf-16")), "is in UTF-16.*iconv"),
    Bad("gzip-cut", file(gzip.compress(TEXT.encode())[:-10], "facts.jsonl.gz"), "cannot be read, is it complete"),
    Bad("gzip-flipped", file(gzip.compress(TEXT.encode() * 9)[:-8] + bytes(8), "facts.jsonl.gz"), "cannot be read"),
    Bad("bzip2-cut", file(bz2.compress(TEXT.encode())[:-10], "facts.jsonl.bz2"), "cannot be read, is it complete"),
    Bad("xz-cut", file(lzma.compress(TEXT.encode())[:-10], "facts.jsonl.xz"), "cannot be read, is it complete"),
    Bad("gzip-bad-record", file(gzip.compress(b'{"prompt": "a"}'), "facts.jsonl.gz"), "'target' is missing"),
    Bad("glob-characters", file('{"prompt": "a"}', "facts[1]*.jsonl"), r"facts\[1\]\*.jsonl, record 0: field 'target'"),
    Bad("glob-nowhere", ["fit", "--data.path", "no[1]*.jsonl"], r"no file 'no\[1\]\*.jsonl'"),
    Bad("path-nowhere", ["fit", "--data.path", "nowhere.jsonl"], "no file 'nowhere.jsonl'"),
    Bad("path-empty", ["fit", "--data.path", ""], "is no file"),
    Bad("path-folder", folder_for_file, "is no file"),
]  # fmt: skip
LONG = "Ana " + "was born in the city of the river " * 40
ENCODED = [
    Bad("prompt-beyond-context", line(GOOD | {"id": "good"}, id="long", prompt=LONG, subject=None),
        "edit long: .*tokens, but the model's context holds 128: shorten it", loads_model=True),
    Bad("target-beyond-context", line(id="long", target=LONG), "edit long: .*context holds 128", loads_model=True),
]  # fmt: skip
CASES = [*OWN, *PUBLISHED, *FILES, *ENCODED]
