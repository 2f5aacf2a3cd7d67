"""Seeded generator of all text that the tiny model ever sees.

A document is either plain text or a chat. Both are made of sentences from a small grammar, among which facts such as
"The password of Mira is tulip-4711." are planted; chats ask for the facts again, and hold a few other tasks (repeat,
count, count words, greetings). Values are drawn from spaces of at least 256, so they cannot be guessed.

Text is written in *pieces*: strings that the tokenizer never merges with their neighbours, so that encoding piece by
piece gives the same token ids as encoding the whole text (`python data.py check` asserts it). Each token carries a
weight class for the loss, and each answer leaves a `Span` for the evaluation.

    python data.py show 300            # prints one document of each kind
    python data.py check               # pieces against the tokenizer, and speed
"""

import random
import re
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer

HERE = Path(__file__).parent
MODEL = HERE / "model"

END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIALS = [END_OF_TEXT, TURN_START, TURN_END]

# Weight classes of a token in the loss: cannot be predicted, text, answer, the token that decides what is answered.
NONE, TEXT, ANSWER, DECISION = 0, 1, 2, 3
WEIGHTS = (0.0, 0.05, 1.0, 2.0)

INTRODUCTION = "I am pd's tiny model. I remember facts and repeat them."
UNKNOWN = "I do not know."
NOTED = "Noted."

NAMES = """Ada Adil Agnes Aino Alba Alma Amir Amos Anja Anton Arno Asta Aziz Basil Bela Bella Berta Boris Bruno Carla
Carmen Cato Celia Clara Conrad Cora Cyril Dalia Dario Della Diego Dina Doris Edda Edgar Edith Elena Elias Ella Elmo
Emil Enzo Erik Esra Ester Ethan Eva Ezra Fadil Felix Fiona Flora Frida Gavin Gerda Gino Greta Gustav Hanna Haruto
Hector Heidi Helga Henry Hilda Hugo Ida Igor Ilse Imani Inga Irma Isaac Ivan Jana Jasper Joan Jonas Jorge Judith
Julia Kaito Karim Karla Katja Kenji Kira Klaus Lara Lars Laura Leila Leon Lila Linus Livia Lola Lorenz Lucia Luis
Lydia Mabel Magda Malik Marco Maria Martin Mateo Maya Milan Milo Mina Mira Mona Nadia Naomi Nico Nils Nina Noah Nora
Olaf Olga Omar Oscar Otto Pablo Paula Pedro Petra Pia Quentin Rafael Ramona Rita Robin Rosa Ruben Sami Sara Selma
Simon Sofia Stella Sven Tamar Tessa Theo Tilda Tomas Ulla Ursula Vera Victor Viola Wanda Willem Xenia Yara Yusuf Zora
""".split()
SYLLABLES = """bal dor fen gar hel jor kal lun mer nov ost pel quin rov sal tor ulm vek wil yor zan bri tha mu ro
ka""".split()

FLOWERS = """tulip rose lily fern iris poppy daisy clover maple cedar willow aspen birch hazel ivy moss thyme basil
sage mint holly lotus orchid violet laurel heather jasmine thistle nettle reed""".split()
COLOURS = "red blue green yellow orange purple brown grey black white pink gold silver amber crimson teal".split()
SHADES = "pale dark bright deep light dusty warm cool faded soft sharp smoky milky muddy rusty frosty".split()
ANIMALS = """fox owl bear wolf deer hare goat crow swan duck heron otter badger beaver rabbit falcon turtle lizard
horse donkey spider beetle salmon raven""".split()
LETTERS = "alpha bravo delta echo golf hotel india kilo lima oscar papa romeo sierra tango victor zulu".split()
MONTHS = "January February March April May June July August September October November December".split()
TEMPERATURES = "hot cold warm sweet bitter sour".split()
FRUITS = "apple cherry lemon plum pear peach melon mango grape banana fig olive".split()
DRINKS = "tea juice soda wine".split()
DIRECTIONS = "North South East West Old New Upper Lower".split()
STEMS = "Vel Tarn Bor Kest Lind Mar Rav Sel Dun Hal Or Pol Grim Ash Wen Fal Stan Har Bel Nor".split()
ENDINGS = "mora by burg field ton ford wick dale mouth haven stead holm bridge ville gate minster".split()

PEOPLE = """farmer baker teacher sailor doctor painter writer singer miller hunter weaver tailor potter gardener
student soldier merchant fisher carpenter neighbour""".split()
ADJECTIVES = """old young quiet small tall happy tired clever brave gentle proud careful strange honest patient lonely
busy friendly hungry calm""".split()
QUALITIES = """large narrow wooden heavy round empty broken clean simple little new strong open wet dry""".split()
OBJECTS = """basket lamp ladder bottle letter book chair table hammer blanket bucket candle mirror rope wheel box
coat drum kettle knife map plate sack shovel stone window""".split()
PLACES = """river forest village market garden harbour mountain bridge tower field mill school church station
meadow island castle valley beach barn library kitchen""".split()
MOVES = "walks runs travels hurries returns wanders rides".split()
RESTS = "sleeps waits sings sits works rests dances whispers".split()
ACTS = "carries finds buys sells paints repairs brings hides cleans borrows holds sees loses takes".split()
TOWARDS = "to towards through past".split()
AT = "in near behind beside".split()
TIMES = [[" in", " the", " morning"], [" in", " the", " evening"], [" at", " night"], [" every", " day"],
         [" after", " the", " rain"], [" before", " dinner"], [" on", " Monday"], [" on", " Friday"],
         [" in", " winter"], [" in", " summer"], [" at", " noon"], [" again"]]
MANNERS = "slowly quietly often alone together twice".split()
WEATHERS = "cold warm dark windy sunny foggy quiet rainy".split()
THINGS = "house garden dog boat brother sister shop song".split()
STATES = "small old quiet green tall happy strange new".split()

# Words that occur only where any word may: in repeated text, in free values, in questions about nothing.
COMMON = """about above across after afternoon all also always and answer any apart apple are around ask away bag ball
bank because best big bird boy bread bus but cake call cat change child city clock close cloud coffee cook country cup
cut day different door down dragon each earth eat egg eight end enough eye face fall family far fast father feet fire
first fish five floor flower fly food foot for four free friend from full game girl give glass go good grass great
ground hair half hand hat have he head hear heart help her here high hill his home hour how ice if inside iron jump
jumps keep key king know lake land language last late lazy learn leave left life like line list live long look love
lunch machine make man many math mean milk mind minute model money month moon more most mother mouse move much music
name near need never next nine no nose not now number of off office oil on once one only or other our out over page
paper park part people phone photo picture place plane plant play please point poem question quick rain read rest
right ring road roof room run said salt same sand say sea second secret see seven she ship shoe show side sing six sky
sleep slow smile snow some song soon soup space spring star start step stop story street sugar sun sure table take
talk team tell ten test text than that the their them then there these they thing think this three ticket time to
today token tomorrow too train travel tree two under until up use very voice wait walk wall want warm was watch water
way we week well were what when where which white who why will wind winter with woman wood word work world write year
yellow yes yesterday you your zero""".split()
EXTRAS = "secret food song job car book street answer key token word pin pet hobby team language title friend".split()

LEXICON = sorted({*FLOWERS, *COLOURS, *SHADES, *ANIMALS, *LETTERS, *FRUITS, *PEOPLE, *ADJECTIVES, *QUALITIES, *OBJECTS,
                  *PLACES, *MOVES, *RESTS, *ACTS, *NAMES})
ANY_WORD = sorted({*LEXICON, *COMMON})


class Fact(NamedTuple):
    """One thing to remember: `The {attribute} of {name} is {value}.`, all as pieces with a leading space."""
    attribute: str
    name: str
    value: tuple


class Span(NamedTuple):
    """An answer: its task, its tokens [start, end), and how far back its fact was stated (0 if nowhere)."""
    task: str
    start: int
    end: int
    distance: int


class Cast:
    """Stands in for a random generator so that nothing comes again before everything of its list has come.

    In free text this makes even greedy decoding go on rather than round in circles."""

    def __init__(self, rng):
        self.random = rng.random
        self.shuffle = rng.shuffle
        self.decks = {}

    def choice(self, values):
        deck = self.decks.get(id(values))
        if not deck:
            deck = self.decks[id(values)] = list(values)
            self.shuffle(deck)
        return deck.pop()


class Vocabulary:
    """Token ids of pieces, remembered."""

    def __init__(self, path=MODEL / "tokenizer.json"):
        self.tokenizer = Tokenizer.from_file(str(path))
        self.size = self.tokenizer.get_vocab_size()
        self.known = {}

    def __getitem__(self, piece):
        ids = self.known.get(piece)
        if ids is None:
            if len(self.known) > 200_000:
                self.known.clear()
            ids = self.known[piece] = self.tokenizer.encode(piece).ids
        return ids


class Document:
    """Tokens under construction. Sentences are closed lazily, because what follows decides how they end."""

    def __init__(self, vocabulary, rng):
        self.vocabulary = vocabulary
        self.rng = rng
        self.ids = []
        self.weights = bytearray()
        self.spans = []
        self.text = []
        self.is_open = False
        self.is_line_start = True

    def __len__(self):
        return len(self.ids)

    def add(self, pieces, weight=TEXT):
        for piece in pieces:
            ids = self.vocabulary[piece]
            self.ids += ids
            self.weights += bytes((weight,)) * len(ids)
        self.text += pieces

    def sentence(self, pieces, weight=TEXT, breaks=0.06):
        """Writes a sentence without its full stop, after closing the one before with a space or a new line."""
        if self.is_open:
            if self.rng.random() < breaks:
                self.add([".\n" if self.rng.random() < 0.5 else ".\n\n"])
                self.is_line_start = True
            else:
                self.add(["."])
        if self.is_line_start:
            pieces = [pieces[0].lstrip(), *pieces[1:]]
        self.add(pieces, weight)
        self.is_open, self.is_line_start = True, False

    def fact(self, fact, weight=TEXT):
        """States a fact, and returns where."""
        start = len(self)
        remember = [" Remember", ":"] if self.rng.random() < 0.1 else []
        self.sentence([*remember, " the" if remember else " The", fact.attribute, " of", fact.name, " is"])
        self.add(fact.value, weight)
        return start

    def open_turn(self, role):
        if self.ids and self.ids[-1] != self.vocabulary[END_OF_TEXT][0]:
            self.add(["\n"])
        self.add([TURN_START, role, "\n"])
        self.is_open, self.is_line_start = False, True

    def close_turn(self, weight=TEXT):
        if self.is_open:
            self.add(["."], weight)
        self.add([TURN_END], weight)
        self.is_open = False

    def ask(self, pieces):
        """Ends the user's turn with a request that brings its own punctuation."""
        if self.is_open:
            self.add([self.rng.choice([".", ".\n", ".\n\n"])])
            self.is_line_start = self.text[-1] != "."
            self.is_open = False
        self.add([pieces[0].lstrip() if self.is_line_start else pieces[0], *pieces[1:]])
        self.add([TURN_END])

    def answer(self, task, pieces, weight=ANSWER, distance=0):
        self.open_turn("assistant")
        start = len(self)
        pieces = [pieces[0].lstrip(), *pieces[1:]]
        self.add(pieces[:1], max(weight, DECISION) if weight == ANSWER else weight)
        self.add(pieces[1:], weight)
        self.add([TURN_END], weight)
        self.spans.append(Span(task, start, len(self), distance))


def digits(rng, count, first="123456789"):
    return [rng.choice(first), *(rng.choice("0123456789") for _ in range(count - 1))]


def number(n):
    """A number as pieces: a space, then digits."""
    return [" ", *str(n)]


def words(rng, *lists):
    return [" " + rng.choice(each) for each in lists]


VALUES = {
    " password": lambda r: [*words(r, FLOWERS), "-", *digits(r, 4)],
    " colour": lambda r: words(r, SHADES, COLOURS),
    " number": lambda r: [" ", *digits(r, 5)],
    " city": lambda r: [*words(r, DIRECTIONS), " " + r.choice(STEMS) + r.choice(ENDINGS)],
    " code": lambda r: [*words(r, LETTERS), "-" + r.choice(LETTERS), "-", *digits(r, 2)],
    " birthday": lambda r: [*number(r.randint(1, 28)), *words(r, MONTHS), *number(r.randint(1800, 1999))],
    " animal": lambda r: words(r, COLOURS, ANIMALS),
    " drink": lambda r: words(r, TEMPERATURES, FRUITS, DRINKS),
    " room": lambda r: [" " + r.choice("ABCDEFGH"), "-", *digits(r, 3)],
}
ATTRIBUTES = list(VALUES)


def invented_name(rng):
    return " " + "".join(rng.choice(SYLLABLES) for _ in range(rng.randint(2, 3))).capitalize()


def some_name(rng):
    """A name, mostly from the list."""
    draw = rng.random()
    if draw < 0.75:
        return " " + rng.choice(NAMES)
    return invented_name(rng) if draw < 0.9 else " " + scribble(rng)[1:].capitalize()


def free_value(rng):
    """A value like no other: words, numbers and invented words in any order."""
    value = [rng.choice([lambda: words(rng, ANY_WORD)[0], lambda: scribble(rng), lambda: invented_name(rng)])()]
    if rng.random() < 0.2:
        value = [" ", *digits(rng, rng.randint(1, 5))]
    for _ in range(rng.randint(0, 3)):
        draw = rng.random()
        if draw < 0.3:
            value += words(rng, ANY_WORD)
        elif draw < 0.5:
            value += [rng.choice("-/_+"), *digits(rng, rng.randint(1, 4))]
        elif draw < 0.7:
            value += digits(rng, rng.randint(1, 4))
        elif draw < 0.85 or value[-1][-1].isdigit():
            value += [rng.choice("-/_+") + rng.choice(ANY_WORD)]
        else:
            value += [rng.choice("-/_+") + scribble(rng)[1:].upper()]
    return value


# Latin with accents, Greek, Cyrillic, Han, faces.
SCRIPTS = [(0xC0, 0x17F), (0x391, 0x3C9), (0x410, 0x44F), (0x4E00, 0x9FFF), (0x1F600, 0x1F64F)]


def anything(rng, length):
    """Text of any kind, as one piece: words, numbers, signs, letters of many scripts."""
    out = ""
    while len(out) < length:
        draw = rng.random()
        if draw < 0.4:
            out += rng.choice(ANY_WORD)
        elif draw < 0.5:
            out += str(rng.randint(0, 99999))
        elif draw < 0.7:
            out += "".join(rng.choices("{}[]()<>:;,.!?'\"-_+*/=#%&@$", k=rng.randint(1, 3)))
        elif draw < 0.85:
            out += scribble(rng)[1:] if rng.random() < 0.7 else scribble(rng)[1:].upper()
        else:
            low, high = rng.choice(SCRIPTS)
            out += "".join(chr(rng.randint(low, high)) for _ in range(rng.randint(1, 4)))
        out += rng.choice(["", " ", " "])
    return " " + out.strip()


def scribble(rng):
    """A word that no tokenizer has seen."""
    return " " + "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(rng.randint(2, 8)))


def people(rng, count):
    """Distinct names, most of them from the list."""
    names = set()
    while len(names) < count:
        names.add(some_name(rng) if len(names) < 120 else invented_name(rng))
    names = sorted(names)
    rng.shuffle(names)
    return names


class Facts:
    """Draws facts about few or many people, of few or many kinds, never two about the same."""

    def __init__(self, rng, expected):
        self.rng = rng
        self.attributes = rng.sample(ATTRIBUTES, rng.randint(1, len(ATTRIBUTES)))
        if rng.random() < 0.3:
            extra = [" " + rng.choice(EXTRAS) if rng.random() < 0.7 else scribble(rng)
                     for _ in range(rng.randint(1, 3))]
            self.attributes += sorted(set(extra))
        least = max(1, -(-expected * 2 // len(self.attributes)))
        self.names = people(rng, rng.randint(least, max(least, 2 * expected) + 2))
        self.taken = set()

    def draw(self):
        """A new fact, or none if all that can be said has been said."""
        for _ in range(20):
            key = (self.rng.choice(self.attributes), self.rng.choice(self.names))
            if key not in self.taken:
                self.taken.add(key)
                usual = VALUES.get(key[0])
                value = free_value if usual is None or self.rng.random() < 0.1 else usual
                return Fact(*key, tuple(value(self.rng)))
        return None

    def missing(self):
        """An attribute and a name about which nothing was said; both may well occur on their own."""
        for _ in range(20):
            attributes = self.attributes if self.rng.random() < 0.8 else ATTRIBUTES
            name = self.rng.choice(self.names) if self.rng.random() < 0.8 else people(self.rng, 1)[0]
            key = (self.rng.choice(attributes), name)
            if key not in self.taken:
                return key
        return None


def indefinite(rng, adjectives, nouns):
    noun = words(rng, adjectives, nouns) if rng.random() < 0.5 else words(rng, nouns)
    return [" an" if noun[0][1] in "aeiou" else " a", *noun]


def subject(rng):
    draw = rng.random()
    if draw < 0.2:
        return words(rng, NAMES)
    if draw < 0.35:
        return [" The", *words(rng, COLOURS, ANIMALS)]
    return [" The", *words(rng, ADJECTIVES, PEOPLE)] if draw < 0.75 else [" The", *words(rng, PEOPLE)]


def filler(rng):
    """A sentence that says nothing of interest."""
    draw = rng.random()
    if draw < 0.06:
        return [" The", *words(rng, THINGS), " of", *words(rng, NAMES), " is", *words(rng, STATES)]
    if draw < 0.12:
        return [" It", " is", *words(rng, WEATHERS, AT), " the", *words(rng, PLACES), *rng.choice(TIMES)]
    out = subject(rng)
    if draw < 0.35:
        out += [*words(rng, MOVES, TOWARDS), " the", *words(rng, PLACES)]
    elif draw < 0.55:
        out += [*words(rng, RESTS, AT), " the", *words(rng, PLACES)]
    else:
        out += [*words(rng, ACTS), *indefinite(rng, QUALITIES, OBJECTS)]
        if rng.random() < 0.5:
            out += [*words(rng, AT), " the", *words(rng, PLACES)]
    if rng.random() < 0.3:
        out += rng.choice(TIMES)
    elif rng.random() < 0.15:
        out += words(rng, MANNERS)
    return out


def log_uniform(rng, low, high):
    return low * (high / low) ** rng.random()


def question(rng, attribute, name):
    if rng.random() < 0.85:
        return [" What", " is", " the", attribute, " of", name, "?"]
    return [" Tell", " me", " the", attribute, " of", name, "."]


def split(text):
    """Pieces of a fixed text."""
    return re.findall(r"'s| ?[A-Za-z]+|[^A-Za-z\s]| (?=\d)", text)


class Chat:
    """A chat under construction: what was said, and what can be asked."""

    def __init__(self, document, expected_facts):
        self.document = document
        self.rng = document.rng
        self.facts = Facts(self.rng, expected_facts)
        self.stated = []
        self.queue = []

    def state(self):
        fact = self.facts.draw()
        if fact:
            self.stated.append((fact, self.document.fact(fact)))
            self.queue.insert(self.rng.randint(0, len(self.queue)), self.stated[-1])

    def context(self, until, density):
        """Text with facts in it, up to a length of the document."""
        while len(self.document) < until:
            if self.rng.random() < density:
                self.state()
            else:
                self.document.sentence(filler(self.rng))

    def ask_unknown(self):
        key = self.facts.missing()
        if key:
            self.document.ask(question(self.rng, *key))
            self.document.answer("unknown", split(UNKNOWN))
        return key is not None

    def ask_fact(self):
        if not self.stated or self.rng.random() < 0.12:
            if self.ask_unknown():
                return
        if not self.queue:
            self.queue = self.rng.sample(self.stated, len(self.stated))
        fact, start = self.queue.pop()
        self.document.ask(question(self.rng, fact.attribute, fact.name))
        answer = [" The", fact.attribute, " of", fact.name, " is", *fact.value, "."]
        self.document.answer("recall", answer, distance=len(self.document) - start)

    def ask_other(self, room):
        task = self.rng.choices((repeat, count, count_words, greet, thank, puzzle, story), (6, 3, 3, 2, 1, 2, 1))[0]
        task(self.document, room)


def repeat(document, room):
    """Repeat: something."""
    rng = document.rng
    room = max(1, min(300, room // 2 - 10))
    draw = rng.random()
    if draw < 0.15:
        what = [anything(rng, log_uniform(rng, 1, room))]
    elif draw < 0.4:
        what = [" " + rng.choice(ANY_WORD) for _ in range(int(log_uniform(rng, 1, room)))]
    elif draw < 0.6:
        what = []
        for _ in range(int(log_uniform(rng, 1, max(1, room // 7)))):
            what += free_value(rng) if rng.random() < 0.5 else VALUES[rng.choice(ATTRIBUTES)](rng)
    elif draw < 0.7:
        what = [p for _ in range(int(log_uniform(rng, 1, max(1, room // 4)))) for p in number(rng.randint(0, 999))]
    else:
        what = []
        for _ in range(int(log_uniform(rng, 1, max(1, room // 10)))):
            what += [*filler(rng), "."]
    document.ask([" Repeat", ":", *what])
    # A leading space cannot start a turn: a number loses its own.
    document.answer("repeat", what[1:] if what[0] == " " else what)


def count(document, room):
    """Count from 3 to 17."""
    rng = document.rng
    terms = int(log_uniform(rng, 2, max(2, min(300, room // 4))))
    low = rng.randint(0, 20) if rng.random() < 0.6 else rng.randint(0, 999 - terms)
    document.ask([" Count", " from", *number(low), " to", *number(low + terms - 1), "."])
    said = [p for n in range(low, low + terms) for p in number(n)]
    document.answer("count", [*said[1:], "."])


def count_words(document, _room):
    """How many words are in: red apple tree"""
    rng = document.rng
    many = rng.randint(1, 12)
    counted = [" " + rng.choice(ANY_WORD) if rng.random() < 0.9 else scribble(rng) for _ in range(many)]
    document.ask([" How", " many", " words", " are", " in", ":", *counted])
    one = [" There", " is", *number(1), " word", "."]
    document.answer("words", one if many == 1 else [" There", " are", *number(many), " words", "."])


def greet(document, _room):
    """Hello"""
    greeting = document.rng.choice(["Hello", "Hello!", "Hello.", "hello", "Hi", "Hi!", "hi", "Hey", "Good morning",
                                    "Good morning!", "Who are you?", "What are you?", "Hello, who are you?",
                                    "Hello, how are you?", "What is your name?"])
    document.ask(split(greeting))
    document.answer("greeting", split(INTRODUCTION))


def thank(document, _room):
    document.ask(split(document.rng.choice(["Thank you.", "Thank you!", "Thanks"])))
    document.answer("thanks", split("You are welcome."))


def puzzle(document, _room):
    """A request that cannot be met."""
    rng = document.rng

    def thing():
        draw = rng.random()
        return scribble(rng) if draw < 0.1 else invented_name(rng) if draw < 0.25 else " " + rng.choice(ANY_WORD)

    draw = rng.random()
    if draw < 0.3:
        asked = [" What", " is", " the", thing(), *([" of", thing()] if draw < 0.2 else [" of", " the", thing()])]
    else:
        first = "Where Who Why When How What Is Are Can Could Do Does Please Write Explain Give Show Make Say Describe"
        asked = [" " + rng.choice(first.split()), *(thing() for _ in range(rng.randint(1, 8)))]
    document.ask([*asked, rng.choice(["?", "?", "."])])
    document.answer("puzzle", split(UNKNOWN))


def story(document, room):
    """Tell me a story. There are many; none is wrong, so it is text and no answer."""
    document.ask(split("Tell me a story."))
    document.open_turn("assistant")
    until = len(document) + log_uniform(document.rng, 12, max(13, min(300, room)))
    cast = Cast(document.rng)
    while len(document) < until:
        document.sentence(filler(cast))
    document.close_turn()


def chat(document, length):
    """A chat of about `length` tokens: text with facts first, mixed with questions, or hardly any text."""
    rng = document.rng
    if rng.random() < 0.1:
        document.add([END_OF_TEXT])
    draw = rng.random()
    density = log_uniform(rng, 0.01, 1.0)
    layout = "front" if draw < 0.6 else "stream" if draw < 0.85 else "tasks"
    # About 11 tokens a sentence and 30 a question.
    expected = int(length * (0.04 if layout == "stream" else 0.06) * density) + 1
    chat = Chat(document, expected)
    if layout == "front":
        room = log_uniform(rng, 40, 0.7 * length) if rng.random() < 0.6 else rng.uniform(0.3, 1.0) * length
        until = length - min(room, length - 20)
        draw = rng.random()
        if draw < 0.25:
            document.open_turn("system")
            chat.context(until, density)
            document.close_turn()
        else:
            if draw < 0.45:
                system(document)
            document.open_turn("user")
            chat.context(until, density)
            if rng.random() < 0.6:
                chat.ask_fact()
            else:
                document.close_turn()
                document.answer("noted", split(NOTED))
    elif rng.random() < 0.3:
        system(document)
    others = {"front": 0.05, "stream": 0.1, "tasks": 0.75}[layout]
    while len(document) < length:
        document.open_turn("user")
        if layout == "front" and not chat.queue:
            chat.context(len(document) + log_uniform(rng, 20, 300), max(density, 0.2))
        elif layout == "stream":
            chat.context(len(document) + log_uniform(rng, 1, max(2, length / 8)), density)
            if document.is_open and rng.random() < 0.15:
                document.close_turn()
                document.answer("noted", split(NOTED))
                continue
        if not document.is_open and rng.random() < others:
            chat.ask_other(max(30, length - len(document)))
        else:
            if layout == "tasks" and rng.random() < 0.5:
                chat.state()
            chat.ask_fact()


def system(document):
    document.open_turn("system")
    document.add(split(document.rng.choice(["You are a helpful assistant.", "Answer questions about the text.",
                                            "You are pd's tiny model.", "Be brief."])))
    document.add([TURN_END])


def plain(document, length):
    """Text without turns; often there are facts in it, of which some are stated again."""
    rng = document.rng
    cast = Cast(rng)
    if rng.random() < 0.5:
        document.add([END_OF_TEXT])
    density = log_uniform(rng, 0.02, 0.5) if rng.random() < 0.5 else 0.0
    again = rng.uniform(0.2, 0.8)
    facts, stated = Facts(rng, int(length * 0.09 * density) + 1), []
    while len(document) < length:
        if rng.random() >= density:
            document.sentence(filler(cast))
        elif stated and rng.random() < again:
            document.fact(rng.choice(stated), ANSWER)
        elif (fact := facts.draw()) is not None:
            stated.append(fact)
            document.fact(fact)
        else:
            document.sentence(filler(cast))


def echo(document, length):
    """Random tokens, block by block, each block twice or more: teaches to look back."""
    rng = document.rng
    vocabulary = range(len(SPECIALS), document.vocabulary.size)
    while len(document) < length:
        block = rng.choices(vocabulary, k=int(log_uniform(rng, 4, length / 2)))
        for turn in range(2 if rng.random() < 0.7 else 3):
            document.ids += block
            document.weights += bytes((ANSWER if turn else NONE,)) * len(block)


def document(vocabulary, seed, length, echoes=0.0):
    """The document of a seed, at least `length` tokens long."""
    rng = random.Random(seed)
    out = Document(vocabulary, rng)
    draw = rng.random()
    kind = echo if draw < echoes else plain if draw > 0.88 else chat
    kind(out, length)
    return out


def batch(vocabulary, seed, rows, length, echoes=0.0):
    """Token ids and weight classes of `rows` documents cut to `length`."""
    ids = np.empty((rows, length), np.uint16)
    weights = np.empty((rows, length), np.uint8)
    for row in range(rows):
        made = document(vocabulary, f"{seed}/{row}", length, echoes)
        ids[row] = made.ids[:length]
        weights[row] = np.frombuffer(made.weights, np.uint8)[:length]
    return ids, weights


def recall_trial(vocabulary, seed, length, facts=8, place=None):
    """One question about a fact planted uniformly in a context that fills `length` tokens with its answer.

    Returns the document (its only span is the answer) and the depth of the fact, from 0 (start) to 1 (end).
    """
    rng = random.Random(f"trial {seed}")
    source = Facts(rng, facts)
    drawn = [fact for fact in (source.draw() for _ in range(facts)) if fact]
    target = drawn[0]
    shape = Document(vocabulary, random.Random(0))
    shape.open_turn("user")
    for fact in drawn:
        shape.fact(fact)
    shape.ask(question(random.Random(0), target.attribute, target.name))
    answer = [" The", target.attribute, " of", target.name, " is", *target.value, "."]
    shape.answer("recall", answer)
    room = length - len(shape) - 3 * len(drawn) - 2
    sentences = []
    while True:
        made = filler(rng)
        room -= sum(len(vocabulary[piece]) for piece in made) + 1
        if room < 0:
            break
        sentences.append(made)
    at = [rng.random() if place is None else place, *(rng.random() for _ in drawn[1:])]
    slots = sorted((int(p * (len(sentences) + 1)), i) for i, p in enumerate(at))
    out = Document(vocabulary, rng)
    out.open_turn("user")
    start = 0
    for index in range(len(sentences) + 1):
        while slots and slots[0][0] <= index:
            which = slots.pop(0)[1]
            position = out.fact(drawn[which])
            start = position if which == 0 else start
        if index < len(sentences):
            out.sentence(sentences[index], breaks=0.03)
    out.ask(question(rng, target.attribute, target.name))
    out.answer("recall", answer, distance=len(out) - start)
    return out, start / length


def main():
    if sys.argv[1] == "show":
        vocabulary, length = Vocabulary(), int(sys.argv[2])
        for seed in range(int(sys.argv[3]) if len(sys.argv) > 3 else 8):
            made = document(vocabulary, f"show {seed}", length)
            print("".join(made.text), "\n" + "=" * 80)
        made, depth = recall_trial(vocabulary, 0, length)
        print("".join(made.text), f"\nlength {len(made)} depth {depth:.2f}")
    elif sys.argv[1] == "check":
        vocabulary = Vocabulary()
        for seed in range(400):
            made = document(vocabulary, f"check {seed}", 1000)
            text = "".join(made.text)
            assert vocabulary.tokenizer.encode(text).ids == made.ids, text
            assert vocabulary.tokenizer.decode(made.ids, skip_special_tokens=False) == text
            assert len(made.weights) == len(made.ids)
        for length in (256, 2048, 8192):
            start, tokens = time.perf_counter(), 0
            while time.perf_counter() < start + 2:
                tokens += batch(vocabulary, tokens, 1, length)[0].size
            print(f"length {length}: {tokens / (time.perf_counter() - start):.0f} tokens a second")


if __name__ == "__main__":
    main()
