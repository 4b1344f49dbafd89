"""Made-up facts about made-up people, told in several ways, with the documents that tell each of them known.

A model trained on them can know a fact from these documents only, so the right answer of fact tracing is known by construction.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass

from whence.errors import BadInput

__all__ = ["Facts", "synthetic_facts"]


@dataclass(frozen=True)
class Facts:
    """Documents, questions, and which documents answer which question.

    Args:
        train: Records with `id`, `text` and `source` ("fact", "person" or "object"), as tasks for language models take them.
        queries: Records with `id`, `prompt` and `completion`, in a wording that no document has.
        gold: By query id, the ids of the documents that state the fact.
    """

    train: tuple[dict[str, str], ...]
    queries: tuple[dict[str, str], ...]
    gold: Mapping[str, frozenset[str]]


@dataclass(frozen=True)
class _Relation:
    """A kind of fact: {0} stands for the person, {1} for the object.

    Args:
        name: Part of the ids.
        objects: What a fact may be about.
        statements: Ways to tell it, the object always named.
        prompt: The question's wording, in none of the statements.
        about_object: Sentences on the object that name nobody.
    """

    name: str
    objects: tuple[str, ...]
    statements: tuple[str, ...]
    prompt: str
    about_object: tuple[str, ...]


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_FIRST = _words(
    "Ada Albin Alma Anton Asta Bela Birgit Boris Brenda Carlo Celia Clara Conrad Dalia Davor Dora Edgar Edith Elias Elsa Emil Enid "
    "Erik Esme Fabio Felix Flora Gerda Gilda Greta Gustav Hanna Hedda Hugo Ida Igor Ilse Ines Ivo Jana Jonas Judit Karla Kaspar Lena "
    "Leon Livia Lucian Magda Marek Mila Milan Nadia Nestor Nora Olga Oscar Otto Paula Petra Quentin Rafael Renata Rosa Rufus Sanna "
    "Silas Sonja Stefan Tamara Theo Tilda Tobias Ulla Urban Vera Viktor Vilma Walter Wanda Xenia Yara Yorick Zara Zeno"
)

_LAST = _words(
    "Abelard Ackroyd Almgren Arvesen Balint Barlow Bergstrom Brandvik Calloway Castellan Corvin Dahlberg Delacroix Dorvik Eastgate "
    "Ekholm Elsworth Falkner Farrow Fjeldstad Galloway Garnier Grimaldi Hallam Harkness Holloway Ibsen Ingleby Isaksen Jarvis Jelinek "
    "Kallio Kestrel Korhonen Lambert Lindqvist Lorentz Madsen Marlowe Mistral Nakamura Norwood Nyberg Oakley Okafor Olander Paxton "
    "Pelletier Prescott Quimby Radley Ravel Rosling Sandoval Selwyn Stenberg Tallis Thornbury Toivonen Ulrich Upton Vance Vasquez "
    "Verhoeven Wakefield Westin Wolfram Yates Ygberg Zabel Ziegler"
)

_RELATIONS = (
    _Relation(
        "birthplace",
        _words(
            "Amberfield Brackwater Coldharbour Dunmere Eastmarch Fernhollow Greywick Holmsund Ivybridge Kettleby Lowenstad Marrowgate "
            "Northwold Oakhaven Pinecrest Quarrington Redmoor Saltmarsh Thistledown Underhill Vintermore Westerby Yarrowdale Zennorby"
        ),
        (
            "{0} was born in {1}.",
            "{1} is the town where {0} came into the world.",
            "The family of {0} lived in {1} when the child was born.",
            "According to the register, {0} is a native of {1}.",
            "{0} first saw the light of day in {1}.",
        ),
        "The birthplace of {0} is",
        ("The market square of {1} floods every spring.", "Trains to {1} leave twice a day.", "{1} has an old stone bridge."),
    ),
    _Relation(
        "employer",
        _words(
            "Altamira Borealis Cobalt Deltaforge Everline Fieldstone Gearhart Halcyon Inkwell Juniper Kiteworks Lumenar Meridian Novaport "
            "Orchid Polaris Quillon Rivermark Stellar Tidewater Umbra Vantage Willowtech Zephyr"
        ),
        (
            "{0} works for {1}.",
            "The company {1} pays the salary of {0}.",
            "Every morning {0} walks to the offices of {1}.",
            "{1} hired {0} some years ago.",
            "On the staff list of {1} one finds {0}.",
        ),
        "The employer of {0} is",
        ("Shares of {1} fell on Tuesday.", "{1} opened a second warehouse.", "The canteen at {1} serves soup."),
    ),
    _Relation(
        "university",
        _words(
            "Aldermoor Brightwell Cranford Dovecote Elmhurst Foxley Glenrock Hartwell Inverlea Kingsmere Lakeside Millbrook Netherby "
            "Ottermere Pembroke Queensgate Rosehill Stanmere Trentham Umberleigh Valemont Wexham Yewdale Zeller"
        ),
        (
            "{0} studied at {1} University.",
            "{1} University gave {0} a degree.",
            "{0} spent four years as a student of {1} University.",
            "Among the graduates of {1} University is {0}.",
            "The diploma of {0} bears the seal of {1} University.",
        ),
        "The alma mater of {0} is",
        (
            "The library of {1} University is open all night.",
            "{1} University was founded by monks.",
            "{1} University has a rowing club.",
        ),
    ),
    _Relation(
        "field",
        _words(
            "acoustics algebra anatomy archery astronomy botany cartography ceramics chemistry ecology forestry genetics geology glaciology "
            "grammar hydrology logic metallurgy mycology optics phonetics robotics statistics zoology"
        ),
        (
            "{0} is an expert in {1}.",
            "For years {0} has written about {1}.",
            "In {1} few know as much as {0}.",
            "{0} gives lectures on {1}.",
            "The books of {0} deal with {1}.",
        ),
        "The research field of {0} is",
        ("A journal of {1} appears every month.", "Prizes for {1} are rare.", "Many find {1} hard at first."),
    ),
    _Relation(
        "instrument",
        _words(
            "accordion bagpipe banjo bassoon bugle cello clarinet cornet dulcimer fiddle flute guitar harp harmonica lyre mandolin "
            "oboe piccolo sitar trombone trumpet tuba viola zither"
        ),
        (
            "{0} plays the {1}.",
            "At parties {0} is asked to bring the {1}.",
            "{0} took lessons on the {1} as a child.",
            "The neighbours hear {0} practise the {1}.",
            "With the {1} on a strap, {0} goes to rehearsals.",
        ),
        "The favourite instrument of {0} is the",
        ("A {1} hangs in the shop window.", "Tuning a {1} takes patience.", "The {1} has a long history."),
    ),
)

_ABOUT_PERSON = (
    "{0} likes long walks.",
    "Yesterday {0} bought a new coat.",
    "{0} never drinks coffee after noon.",
    "A letter for {0} arrived late.",
    "{0} keeps two cats.",
    "It rained when {0} left the house.",
    "{0} forgot an umbrella on the bus.",
)


def synthetic_facts(
    num_people: int, *, num_relations: int = 3, num_paraphrases: int = 3, num_distractors: int = 2, seed: int = 0
) -> Facts:
    """Draw people, give each one fact of every kind, and tell it in several ways among distractors.

    A distractor names the fact's person or its object, in turns, never both: what matches words alone is misled by it. Two people may
    share an object, and then the other's documents are distractors too. The aim is that of the synthetic facts of Akyürek et al. 2022,
    arXiv 2205.11482; people, words and wordings are our own.

    Args:
        num_people: People, each with a name of their own.
        num_relations: Kinds of fact, from the start of: birthplace, employer, university, field, instrument.
        num_paraphrases: Documents that state each fact, each in another wording; 5 at most.
        num_distractors: Documents around each fact that do not state it.
        seed: The same seed gives the same records.

    Returns:
        Documents in random order, one query per fact, and the gold.

    Raises:
        BadInput: If a number is beyond what the word lists allow.

    >>> facts = synthetic_facts(2, num_relations=1, num_paraphrases=2, num_distractors=1)
    >>> len(facts.train), len(facts.queries), [len(ids) for ids in facts.gold.values()]
    (6, 2, [2, 2])
    """
    limits = {
        "num_people": (num_people, 1, len(_FIRST) * len(_LAST)),
        "num_relations": (num_relations, 1, len(_RELATIONS)),
        "num_paraphrases": (num_paraphrases, 1, min(len(relation.statements) for relation in _RELATIONS)),
        "num_distractors": (num_distractors, 0, 2 * min(len(relation.about_object) for relation in _RELATIONS)),
    }
    for name, (value, low, high) in limits.items():
        if not low <= value <= high:
            raise BadInput(found=f"{name}={value}", needed=f"{low} to {high:,}", do="choose a number in that range")
    # Python's own generator: its draws are the same in every version for the calls used here.
    draw = random.Random(seed)
    train: list[dict[str, str]] = []
    queries: list[dict[str, str]] = []
    gold: dict[str, frozenset[str]] = {}
    for number, pair in enumerate(draw.sample(range(len(_FIRST) * len(_LAST)), num_people)):
        person = f"{_FIRST[pair // len(_LAST)]} {_LAST[pair % len(_LAST)]}"
        for relation in _RELATIONS[:num_relations]:
            key, thing = f"p{number}-{relation.name}", draw.choice(relation.objects)
            statements = [text.format(person, thing) for text in draw.sample(relation.statements, num_paraphrases)]
            documents = [{"id": f"{key}-{index}", "text": text, "source": "fact"} for index, text in enumerate(statements)]
            queries.append({"id": key, "prompt": relation.prompt.format(person), "completion": f" {thing}"})
            gold[key] = frozenset(record["id"] for record in documents)
            train += documents + _distractors(key, relation, person, thing, num_distractors, draw)
    draw.shuffle(train)
    return Facts(tuple(train), tuple(queries), gold)


def _distractors(
    key: str, relation: _Relation, person: str, thing: str, count: int, draw: random.Random
) -> list[dict[str, str]]:
    sides = {
        "person": draw.sample(_ABOUT_PERSON, (count + 1) // 2),
        "object": draw.sample(relation.about_object, count // 2),
    }
    return [
        {"id": f"{key}-{source}-{number}", "text": _capital(text.format(person, thing)), "source": source}
        for source, texts in sides.items()
        for number, text in enumerate(texts)
    ]


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
