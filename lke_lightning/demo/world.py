"""The demo world: invented entities, the facts about them, and English text that states the facts.

Everything follows from one seed and the standard library. The names are made of syllables, so no fact can be known
from elsewhere, and every fact comes in many wordings, so a model has to learn the fact and not one sentence.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Any


@dataclass(frozen=True)
class Relation:
    """One kind of fact: who has it, what it points to, and how English says it.

    Attributes:
        name: Identifier, the `relation_id` of a record.
        subjects: Kind of the subjects.
        objects: Pool from which the objects are drawn.
        wordings: Sentence openings with one `{}` for the subject, ending right before the object. The first is the
            edit prompt, the next three are paraphrases, the rest are generation prompts.
    """

    name: str
    subjects: str
    objects: str
    wordings: tuple[str, ...]


@dataclass(frozen=True)
class Fact:
    """A statement of the world: `subject` stands in `relation` to `object`."""

    subject: str
    relation: str
    object: str


RELATIONS = {
    name: Relation(name, subjects, objects, tuple(wordings))
    for name, subjects, objects, *wordings in [
        ("birth_town", "person", "town",
         "{} was born in the town of", "The birthplace of {} is", "{} first saw the light of day in",
         "The town where {} grew up is", "{}'s home town is", "{} is a native of", "The parents of {} lived in",
         "If you ask where {} was born, people say it was in"),
        ("employer", "person", "company",
         "{} works for", "The employer of {} is", "{} earns a living at", "The company that pays {} is",
         "{}'s employer is", "{} has signed a contract with", "The boss of {} owns",
         "Every morning {} goes to work at"),
        ("instrument", "person", "instrument",
         "{} plays the", "The instrument that {} plays is the", "{} gives concerts on the",
         "In the orchestra {} is heard on the", "{}'s favourite instrument is the", "{} practises every day on the",
         "The music of {} is written for the", "As a child {} learned to play the"),
        ("language", "person", "language",
         "{} speaks", "The mother tongue of {} is", "{} writes letters in", "The language spoken by {} is",
         "{}'s first language is", "{} thinks and dreams in", "The diary of {} is written in", "At home {} talks in"),
        ("guild", "person", "guild",
         "{} belongs to the guild of the", "The guild that admitted {} is that of the", "{} learned the trade of the",
         "By profession {} is one of the", "{}'s guild is that of the", "{} wears the badge of the",
         "The masters of {} were found among the", "On feast days {} marches with the"),
        ("head_office", "company", "town",
         "{} has its head office in", "The headquarters of {} are in", "{} runs its business from",
         "The directors of {} meet in", "{}'s main building stands in", "{} was founded in",
         "The clerks of {} live in", "Letters to {} are sent to"),
        ("product", "company", "ware",
         "{} makes", "The goods sold by {} are", "{} has become famous for its", "The workshops of {} turn out",
         "{}'s shop windows are full of", "{} made a fortune with", "The customers of {} buy",
         "People go to {} when they need"),
        ("country", "town", "country",
         "{} is a town in", "The country in which {} lies is", "{} has always been part of",
         "The citizens of {} pay their taxes to", "{}'s town hall flies the flag of", "{} can be found on any map of",
         "The schools of {} teach the history of", "A traveller who visits {} is a guest of"),
        ("river", "town", "river",
         "{} stands on the banks of the", "The river that flows through {} is the", "{} draws its water from the",
         "The bridges of {} cross the", "{}'s old mills are driven by the", "{} was flooded in spring by the",
         "The children of {} swim in the", "Boats come to {} along the"),
        ("home_port", "ship", "town",
         "{} sails from the port of", "The home port of {} is", "{} was built in the yards of",
         "The owner of {} lives in", "{}'s crew comes from", "{} spends the winter in",
         "The name on the stern of {} is that of", "After each voyage {} returns to"),
        ("cargo", "ship", "cargo",
         "{} carries a cargo of", "The hold of {} is filled with", "{} crosses the sea with a load of",
         "The merchants who hired {} deal in", "{}'s freight is always", "{} was built to transport",
         "The deck of {} smells of", "In every harbour {} takes on more"),
        ("origin", "dish", "country",
         "{} is a dish from", "The country that invented {} is", "{} is eaten at every wedding in",
         "The recipe for {} comes from", "{}'s home is", "{} was first cooked in", "The best cooks of {} live in",
         "Travellers can taste {} in"),
        ("ingredient", "dish", "ingredient",
         "{} is made with", "The main ingredient of {} is", "{} gets its flavour from",
         "The secret of {} is plenty of", "{}'s taste is that of", "{} is seasoned with",
         "The first step of {} is to chop the", "Nobody can cook {} without"),
        ("author", "book", "person",
         "{} was written by", "The author of {} is", "{} made a famous writer of",
         "The name on the cover of {} is that of", "{}'s author is", "{} came from the pen of",
         "The readers of {} send letters to", "All the money earned by {} goes to"),
        ("original_language", "book", "language",
         "{} first appeared in", "The original language of {} is", "{} was translated from",
         "The first edition of {} was printed in", "{}'s manuscript is in", "{} is best enjoyed in",
         "The verses in {} only rhyme in", "Scholars who study {} must know"),
    ]
}  # fmt: skip

TWO_HOP = {  # the answer is the second relation of the first relation's object
    ("birth_town", "country"): "The country in which the birthplace of {} lies is",
    ("birth_town", "river"): "The river that flows through the birthplace of {} is the",
    ("employer", "head_office"): "The employer of {} has its head office in",
    ("employer", "product"): "The goods sold by the employer of {} are",
    ("head_office", "country"): "The country in which the headquarters of {} lie is",
    ("home_port", "country"): "The country in which the home port of {} lies is",
    ("home_port", "river"): "The river that flows through the home port of {} is the",
    ("author", "birth_town"): "The birthplace of the author of {} is",
    ("author", "language"): "The mother tongue of the author of {} is",
}

COMMON_OBJECTS = {
    "guild": "potters, glassblowers, bell founders, bookbinders, tanners, coopers, silver smiths, stone masons, "
    "brewers, rope makers, weavers, candle makers, saddlers, mapmakers, bakers, roof tilers, dyers, clock menders, "
    "barbers, millers",
    "ware": "oil lamps, umbrellas, clay pipes, fishing nets, pocket watches, leather boots, kites, iron stoves, "
    "garden chairs, mirrors, wind-up toys, straw hats, pencils, brass buttons, carpets",
    "cargo": "amber, raw wool, salted cod, cedar wood, copper ore, tea, marble, black pepper, lamp oil, tin, "
    "wild honey, green glass, tar, ready-made sails, indigo",
    "ingredient": "barley, smoked eel, turnips, goat cheese, walnuts, sour cherries, lentils, dried figs, mushrooms, "
    "sea salt, garlic, duck eggs, saffron, plum vinegar, day-old bread",
}
NEIGHBOURS = 5  # of each record
OBJECT_COUNT = 15  # of the named kinds, so that at least six of a hundred subjects share an object
SUBJECT_COUNT = {"person": 200, "company": 100, "town": 100, "ship": 100, "dish": 100, "book": 100}
PLAIN_WORDS = {
    "adjective": "old, small, quiet, heavy, bright, empty, broken, yellow, honest, early, angry, strange, warm, "
    "narrow, useful",
    "person": "farmer, teacher, child, neighbour, stranger, widow, king, clerk, soldier, gardener, doctor, uncle",
    "thing": "house, letter, garden, basket, road, table, window, horse, apple, candle, lake, boat, cart, kitchen, "
    "bridge",
    "deed": "looked for, forgot, painted, talked about, waited near, dreamed of, sold, walked past, liked, found",
    "time": "in the evening, last winter, after the rain, before breakfast, for many years, on market day, again, "
    "alone",
    "state": "rain had stopped, door was open, shop was closed, night was cold, harvest was good, train was late",
}
CLAUSES = (
    "As everybody knows, ", "It is said that ", "According to the newspaper, ", "You may not believe it, but ",
    "I have read that ", "Because I asked, they told me that ", "Therefore we know that ",
    "In those days people said that ",
)  # fmt: skip


class World:
    """The facts of one seed and the texts that state them.

    Attributes:
        facts: All facts, grouped by relation.
        kinds: What every named entity is: "person", "town", ...
    """

    def __init__(self, facts: list[Fact], kinds: dict[str, str], seed: int) -> None:
        """Store the facts and index them; `make_world` is the way to get them."""
        self.facts = facts
        self.kinds = kinds
        self.seed = seed
        self._object = {(fact.subject, fact.relation): fact.object for fact in facts}
        self._by_subject: dict[str, list[Fact]] = {}
        self._subjects: dict[tuple[str, str], list[str]] = {}
        for fact in facts:
            self._by_subject.setdefault(fact.subject, []).append(fact)
            self._subjects.setdefault((fact.relation, fact.object), []).append(fact.subject)

    def records(self) -> list[dict[str, Any]]:
        """One edit request per fact in the schema of MultiCounterFact, to another object of the relation.

        As in CounterFact, the first records (about 220) have every subject once, and ask about neighbours that none of
        them edits in any relation. The records after them return to subjects that were edited before.
        """
        rng = Random(f"records {self.seed}")
        facts = [fact for fact in self.facts if len(self._subjects[fact.relation, fact.object]) > NEIGHBOURS]
        rng.shuffle(facts)
        first = self._apart(facts)
        neighbours = {fact: self._same_object(fact)[-NEIGHBOURS:] for fact in facts} | first
        order = [*first, *(fact for fact in facts if fact not in first)]
        return [self._record(case_id, fact, neighbours[fact], rng) for case_id, fact in enumerate(order)]

    def _apart(self, facts: list[Fact]) -> dict[Fact, list[str]]:
        """Choose facts and their neighbours so that no subject of one is a neighbour or the subject of another."""
        chosen: dict[Fact, list[str]] = {}
        edited: set[str] = set()
        spared: set[str] = set()
        for fact in facts:
            free = [name for name in self._same_object(fact) if name not in edited]
            if fact.subject not in edited | spared and len(free) >= NEIGHBOURS:
                chosen[fact] = sorted(free, key=lambda name: name not in spared)[:NEIGHBOURS]
                edited.add(fact.subject)
                spared |= set(chosen[fact])
        return chosen

    def _same_object(self, fact: Fact) -> list[str]:
        """Other subjects of which the same is true."""
        return [name for name in self._subjects[fact.relation, fact.object] if name != fact.subject]

    def training_documents(self, seed: int = 0, passes: int = 1) -> Iterator[str]:
        """Text that states every fact in five wordings per pass, mixed with descriptions and plain sentences.

        About half of the sentences stand behind other text, so that subjects turn up at varying positions.

        Args:
            seed: Selects wordings, order and company of the sentences; the facts stay the same.
            passes: How often to go through all facts.
        """
        rng = Random(f"documents {self.seed} {seed}")
        for _ in range(passes):
            yield from self._one_pass(rng)

    def heldout_documents(self, seed: int = 0, count: int = 200) -> list[str]:
        """Passages for perplexity: what training says, in a company that training did not show."""
        rng = Random(f"held out {self.seed} {seed}")
        documents = rng.sample(list(self._one_pass(rng)), 4 * count)
        return [" ".join(documents[start : start + 4]) for start in range(0, len(documents), 4)]

    def corpus(self, seed: int = 1) -> list[str]:
        """Documents for key statistics: one pass over all facts."""
        return list(self.training_documents(seed))

    def two_hop(self, subject: str, relation: str, target: str) -> list[tuple[str, str]]:
        """Questions that need `relation` of `subject` and one more step, with their answers if it were `target`."""
        return [
            (question.format(subject), self._object[target, second])
            for (first, second), question in TWO_HOP.items()
            if first == relation and (target, second) in self._object
        ]

    def _record(self, case_id: int, fact: Fact, neighbours: list[str], rng: Random) -> dict[str, Any]:
        relation = RELATIONS[fact.relation]
        objects = sorted({other.object for other in self.facts if other.relation == fact.relation} - {fact.object})
        new = rng.choice(objects)
        likewise = self._subjects[fact.relation, new]
        edit, paraphrases, generations = relation.wordings[0], relation.wordings[1:4], relation.wordings[4:]
        new_answers = dict(self.two_hop(fact.subject, fact.relation, new))
        true_answers = dict(self.two_hop(fact.subject, fact.relation, fact.object))
        return {
            "case_id": case_id,
            "requested_rewrite": {
                "prompt": edit,
                "relation_id": fact.relation,
                "subject": fact.subject,
                "target_new": {"str": new, "id": f"{relation.objects}:{new}"},
                "target_true": {"str": fact.object, "id": f"{relation.objects}:{fact.object}"},
            },
            "paraphrase_prompts": [
                self._behind(wording.format(fact.subject), fact.subject, rng) for wording in rng.sample(paraphrases, 2)
            ],
            "neighborhood_prompts": [edit.format(name) for name in rng.sample(neighbours, len(neighbours))],
            "attribute_prompts": [edit.format(name) for name in rng.sample(likewise, 5)],
            "generation_prompts": [wording.format(fact.subject) for wording in rng.sample(generations, 3)],
            "two_hop": [
                {"question": question, "answer_new": new_answers[question], "answer_true": true_answers[question]}
                for question in true_answers
                if question in new_answers
            ],
        }

    def _behind(self, sentence: str, subject: str, rng: Random) -> str:
        """The sentence as it is or behind an unrelated one that does not name the subject."""
        if rng.random() < 0.5:
            return sentence
        before = rng.choice([plain_sentence(rng), self._state(rng.choice(self.facts), rng)])
        return sentence if subject in before else f"{before} {sentence}"

    def _state(self, fact: Fact, rng: Random, inside: bool = False) -> str:
        """A fact in a random wording; `inside` a sentence the first word is not capitalised."""
        wording = rng.choice(RELATIONS[fact.relation].wordings)
        if inside and not wording.startswith("{}"):
            wording = wording[0].lower() + wording[1:]
        return f"{wording.format(fact.subject)} {fact.object}."

    def _one_pass(self, rng: Random) -> Iterator[str]:
        documents = [document for _ in range(3) for document in self._single_facts(rng)]
        documents += [self._portrait(subject, rng) for subject in self._by_subject for _ in range(2)]
        documents += [self._description(name) for name in self.kinds]
        documents += [self._two_hop_sentence(fact, rng) for fact in self.facts if rng.random() < 0.3]
        documents += [" ".join(plain_sentence(rng) for _ in range(rng.randint(1, 4))) for _ in range(400)]
        rng.shuffle(documents)
        yield from (document for document in documents if document)

    def _single_facts(self, rng: Random) -> Iterator[str]:
        """Every fact once: alone, inside a longer sentence, or behind a plain sentence or another fact."""
        for fact in self.facts:
            draw = rng.random()
            if draw < 0.4:
                yield self._state(fact, rng)
            elif draw < 0.6:
                yield rng.choice(CLAUSES) + self._state(fact, rng, inside=True)
            elif draw < 0.8:
                yield f"{plain_sentence(rng)} {self._state(fact, rng)}"
            else:
                yield f"{self._state(rng.choice(self.facts), rng)} {self._state(fact, rng)}"

    def _portrait(self, subject: str, rng: Random) -> str:
        """All facts of one subject in a passage."""
        facts = self._by_subject[subject]
        sentences = [self._state(fact, rng) for fact in rng.sample(facts, len(facts))]
        if rng.random() < 0.3:
            sentences.insert(0, self._description(subject))
        return " ".join(sentences)

    def _description(self, name: str) -> str:
        """What the named entity is."""
        kind = self.kinds[name]
        article = "The " if kind in ("river", "instrument") else ""
        return f"{article}{name} is {_with_article(kind)}."

    def _two_hop_sentence(self, fact: Fact, rng: Random) -> str:
        """A question of two steps with its answer, empty where the fact leads no further."""
        questions = self.two_hop(fact.subject, fact.relation, fact.object)
        return " ".join(rng.choice(questions)) + "." if questions else ""


def make_world(seed: int = 0) -> World:
    """The world of a seed: 700 subjects with all relations of their kind, people with four of the five."""
    rng = Random(f"world {seed}")
    names = _name_entities(rng)
    pools = {kind: members[:OBJECT_COUNT] for kind, members in names.items()}
    pools |= {kind: listing.split(", ") for kind, listing in COMMON_OBJECTS.items()}
    person_relations = [name for name, relation in RELATIONS.items() if relation.subjects == "person"]
    missing = {person: person_relations[i % len(person_relations)] for i, person in enumerate(names["person"])}
    facts = []
    for name, relation in RELATIONS.items():
        subjects = [subject for subject in names[relation.subjects] if missing.get(subject) != name]
        objects = pools[relation.objects]
        drawn = (objects * (len(subjects) // len(objects) + 1))[: len(subjects)]  # every object equally often
        rng.shuffle(drawn)
        facts += [Fact(subject, name, target) for subject, target in zip(subjects, drawn, strict=True)]
    return World(facts, {name: kind for kind, members in names.items() for name in members}, seed)


def plain_sentence(rng: Random) -> str:
    """A sentence about nobody in particular."""
    words = [rng.choice(listing.split(", ")) for listing in PLAIN_WORDS.values()]
    adjective, person, thing, deed, time, state = words
    described = f"{_with_article(adjective)} {thing}"
    return rng.choice(
        (
            f"The {adjective} {person} {deed} the {thing} {time}.",
            f"Therefore the {person} {deed} {described}.",
            f"Because the {state}, the {person} {deed} the {thing}.",
            f"I {deed} {described} {time}.",
            f"You {deed} the {thing} because the {state}.",
            f"The {thing} of the {person} was {adjective}.",
        )
    )


def _with_article(word: str) -> str:
    """The word behind "a" or "an"."""
    return f"an {word}" if word[0] in "aeiou" and word != "useful" else f"a {word}"


def _name_entities(rng: Random) -> dict[str, list[str]]:
    """Invent the names of all entities, by kind.

    The last word of a name belongs to it alone, because edits are keyed on the last token of the subject.
    """
    words = _invent_words(rng)
    word = words.__next__
    given = [word() for _ in range(50)]
    shapes = {
        "person": [f"{title}{name} {{}}" for title in ("", "", "", "Captain ", "Old Uncle ") for name in given],
        "company": ["House of {}", "Brothers {}", "United Mills of {}", "{}", "{}"],
        "town": ["Port {}", "Upper {}", "{}", "{}", "{}"],
        "ship": ["Proud {}", "Merry {}", "Star of {}", "Queen of the {}", "{}"],
        "dish": ["Roast {}", "Sweet {}", "Soup of {}", "{}", "{}"],
        "book": ["Song of {}", "Tales from {}", "Letters to the {}", "Song of the Old {}", "Road to {}"],
        "country": ["{}ia", "{}land", "{}"],
        "river": ["{}"],
        "language": ["{}ish", "{}ese", "{}ian"],
        "instrument": ["{}"],
    }
    names = {
        kind: [rng.choice(forms).format(word()) for _ in range(SUBJECT_COUNT.get(kind, OBJECT_COUNT))]
        for kind, forms in shapes.items()
    }
    return names | {"instrument": [name.lower() for name in names["instrument"]]}


def _invent_words(rng: Random) -> Iterator[str]:
    """Endless capitalised words of two or three syllables, none of which begins another."""
    onsets = [*"bdfghjklmnprstvwz"] * 3 + ["br", "ch", "dr", "fl", "gr", "kr", "pl", "qu", "sh", "st", "th", "tr"]
    vowels = [*"aaeeioou"] * 2 + ["ai", "ea"]
    middles = [*"nrlsm"] + [""] * 15
    endings = [*"nrlsm", "th", "sk", "nd", "rt", "x", "d", "ck", "ft", "ng"] + [""] * 14
    taken: set[str] = set()
    while True:
        length = rng.choice([1, 1, 2])
        opening = "".join(rng.choice(onsets) + rng.choice(vowels) + rng.choice(middles) for _ in range(length))
        word = (opening + rng.choice(onsets) + rng.choice(vowels[:-2]) + rng.choice(endings)).capitalize()
        if not any(word.startswith(other) or other.startswith(word) for other in taken):
            taken.add(word)
            yield word
