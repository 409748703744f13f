"""Generate the sample corpus: invented lines in the style of Russian shop receipts.

The corpus is INVENTED by this project.  It carries no real receipts and no real brands: every line
is drawn at random from ``lexicon.yaml`` and spelled the way cash registers spell (abbreviated, cut
off at a fixed width, mistyped).  All splits have one distribution, and the same arguments always
give the same rows.  The committed sample: ``python data/make_sample.py data/sample.zip``.
"""

import argparse
import csv
import io
import os
import random
import zipfile
from bisect import bisect
from collections.abc import Callable, Iterator, Sequence
from hashlib import blake2b
from itertools import accumulate, chain
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import yaml

T = TypeVar("T")
SIZES = {"unlabelled": 50_000, "train": 5_000, "val": 1_000, "test": 3_000}
CATEGORIES, MIN_TRAIN_ROWS = 96, 3  # every category has at least so many train rows, if there are enough
TABLE, VARIANTS = 1024, 8  # slots of a weighted table; shortened spellings kept per phrase
MAX_TRIES = 1000  # for a line unlike the others

# The shape of the distribution: most of what a linear model on the labelled lines gets wrong must
# be rare nouns that the unlabelled lines show in context.
CLASS_SHIFT, CLASS_POWER = 60.0, 3.4  # class frequency ~ (rank + shift) ** -power
NOUN_SHIFT, NOUN_POWER = 8.0, 0.4  # the long tail of nouns within a class
POOR, RICH = 0.46, 0.42  # shares of lines with a bare noun and of lines with everything
GENERIC = 0.025  # lines that nobody could tell apart
TYPO, LOOKALIKE, GLUED = 0.06, 0.05, 0.05  # shares of lines with each kind of damage

VOWELS = frozenset("аеёиоуыэюяь")
LOOKALIKES = str.maketrans("аеорсхуАЕКМНОРСТХВ", "aeopcxyAEKMHOPCTXB")
PACKS = ("1/12", "*6", "шт", "уп", "1/6", "1/24", "х12", "1шт", "вес", "1/10", "*1", "/20", "кор", "1уп")
CENTS = ("00", "90", "50", "99", "49")
Phrase = tuple[str, ...]  # a phrase in full, then its shortened spellings

# The habits of ten cash registers, one per column: letter case, the width that lines are cut off at,
# how often it abbreviates a phrase, digits of its article numbers, whether the brand comes first.
UPPER, LOWER, TITLE, PLAIN = str.upper, str.lower, str.title, str.capitalize
CASES = (UPPER, UPPER, UPPER, PLAIN, PLAIN, LOWER, UPPER, UPPER, TITLE, PLAIN)
WIDTHS = (40, 32, 24, 64, 40, 36, 48, 40, 48, 48)
SHORTS = (0.25, 0.45, 0.55, 0.10, 0.30, 0.35, 0.20, 0.40, 0.20, 0.15)
ARTICLES = (0, 0, 0, 0, 0, 0, 13, 6, 0, 4)
BRANDS_FIRST = (False, True, False, False, True, False, False, True, False, False)
REGISTERS = tuple(zip(CASES, WIDTHS, SHORTS, ARTICLES, BRANDS_FIRST, strict=True))


class LexiconError(ValueError):
    """The lexicon cannot be used; the message says why in one line."""


class Category(NamedTuple):
    """Everything a line of one category is drawn from; what is likelier stands in more slots."""

    name: str
    head: Phrase
    nouns: list[Phrase]
    mods: list[Phrase]
    brands: list[Phrase]
    units: list[str]


def weighted_table(items: Sequence[T], weigh: Callable[[int], float]) -> list[T]:
    """Repeat the items in proportion to the weights of their ranks, in about TABLE slots."""
    weights = [weigh(rank) for rank in range(len(items))]
    slots = TABLE / sum(weights)
    return [item for item, weight in zip(items, weights, strict=True) for _ in range(round(slots * weight))]


def shorten(word: str, rng: random.Random) -> str:
    """One way a cash register may shorten a word."""
    if word.startswith("д/"):
        return rng.choice(("для " + word[2:], "д/" + shorten(word[2:], rng), "д" + word[2:]))
    if len(word) < 6 or not word.isalpha():
        return word.replace(",", ".") if rng.random() < 0.5 else word.rstrip(".")
    kind = rng.random()
    if kind < 0.2:
        return word[0] + "".join(c for c in word[1:] if c not in VOWELS)
    end = rng.randint(4, min(7, len(word) - 2))
    while end > 3 and word[end - 1] in VOWELS:  # an abbreviation ends in a consonant
        end -= 1
    return word[:end] + ("." if kind < 0.8 else "")


def make_phrase(text: str) -> Phrase:
    """Spell a phrase; seeded by the text itself, so the spellings do not depend on --seed."""
    rng, full = random.Random(text), text.lower()
    ways = [[w if rng.random() < 0.25 else shorten(w, rng) for w in full.split()] for _ in range(VARIANTS)]
    return (full, *dict.fromkeys(map(" ".join, ways)))


def require(condition: bool, message: str) -> None:
    """Refuse the lexicon unless the condition holds."""
    if not condition:
        raise LexiconError(message)


def check_list(value: Any, where: str, kind: type[T], least: int) -> list[T]:
    """A list of at least ``least`` distinct items of one kind, none of them empty."""
    require(isinstance(value, list), f"{where}: not a list")
    for item in value:
        require(type(item) is kind and bool(item), f"{where}: not a {kind.__name__} or empty: {item!r}")
        require(value.count(item) == 1, f"{where}: listed twice: {item!r}")
    require(len(value) >= least, f"{where}: {len(value)} items, at least {least} needed")
    return list(value)


def unit_spellings(name: str, kind: Any) -> list[str]:
    """Every way to write every amount of one kind of unit."""
    require(isinstance(kind, dict), f"units: {name}: not a mapping")
    forms, texts = kind.get("forms"), []
    are_texts = isinstance(forms, list) and forms and all(isinstance(form, str) for form in forms)
    require(bool(are_texts), f"units: {name}: forms: not a list of texts or empty")
    for amount in check_list(kind.get("amounts"), f"units: {name}: amounts", int, 1):
        for form in forms:  # one listed twice is twice as frequent
            text = form.replace("{n}", str(amount)).replace("{k}", f"{amount / 1000:g}")
            texts += [text, text.replace(".", ",")]
    return texts


def build_category(raw: Any, place: int, group: Any, units: dict[str, list[str]]) -> Category:
    """Check one category and build its tables."""
    name = str(raw.get("name"))
    nouns = [make_phrase(noun) for noun in check_list(raw.get("nouns"), f"{name}: nouns", str, 20)]
    mods = check_list(raw.get("mods"), f"{name}: mods", str, 8)
    shared = check_list(group.get("mods"), f"{name}: mods of the group", str, 4)
    brands = [make_phrase(b) for b in check_list(group.get("brands"), f"{name}: brands", str, 4)]
    kinds = check_list(raw.get("units"), f"{name}: units", str, 1)
    require(set(kinds) <= set(units), f"{name}: units: an unknown kind: {kinds}")
    return Category(
        name=name,
        head=nouns[0],
        nouns=weighted_table(nouns, lambda rank: (rank + NOUN_SHIFT) ** -NOUN_POWER),
        mods=[make_phrase(mod) for mod in mods * 3 + shared],
        # A brand has its favourite categories within the group, so it tells something but not everything.
        brands=weighted_table(brands[place:] + brands[:place], lambda rank: 0.5 ** min(rank, 3)),
        units=[text for kind in kinds for text in units[kind]],
    )


def load_lexicon(path: Path) -> tuple[list[Category], list[float], list[str]]:
    """Read and check the lexicon: the categories, their weights, and the generic phrases."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the one in C is ten times faster
    raw = yaml.load(path.read_text(encoding="utf-8"), Loader=loader)
    require(isinstance(raw, dict) and isinstance(raw.get("units"), dict), "no units")
    units = {name: unit_spellings(name, kind) for name, kind in raw["units"].items()}
    groups = check_list(raw.get("groups"), "groups", dict, 1)
    categories, weights = [], []
    for number, group in enumerate(groups):
        for place, item in enumerate(check_list(group.get("categories"), "categories", dict, 1)):
            categories.append(build_category(item, place, group, units))
            # The first category of every group is frequent, the last one rare.
            weights.append((place * len(groups) + number + CLASS_SHIFT) ** -CLASS_POWER)
    check_list([category.name for category in categories], "names of categories", str, 1)
    require(len(categories) == CATEGORIES, f"{len(categories)} categories, {CATEGORIES} needed")
    return categories, weights, check_list(raw.get("generic"), "generic", str, 1)


class Generator:
    """Draws lines."""

    def __init__(self, lexicon: Path, seed: int) -> None:
        """Read the lexicon and seed the one source of everything random."""
        self.categories, weights, self.generic = load_lexicon(lexicon)
        self.cumulative = list(accumulate(weights))
        self.rng = random.Random(seed)
        self.random = self.rng.random
        # The texts given so far, as 8-byte hashes: about 100 bytes each, 300 MB for 3.1 million.
        self.seen: set[int] = set()

    def pick(self, items: Sequence[T]) -> T:
        """Any of the items, several times faster than Random.choice."""
        return items[int(self.random() * len(items))]

    def digits(self, count: int) -> str:
        """A number of ``count`` digits."""
        return str(int((0.1 + 0.9 * self.random()) * 10**count))

    def spell(self, phrase: Phrase, short: float) -> str:
        """The phrase in full or, with probability ``short``, in any of its spellings."""
        return self.pick(phrase) if self.random() < short else phrase[0]

    def tail(self) -> str:
        """The end of a line: a price, a pack mark, a weighed amount, a number."""
        kind = self.random()
        if kind < 0.45:
            return f"{int(self.random() ** 2 * 900) + 9},{self.pick(CENTS)}"
        if kind < 0.8:
            return self.pick(PACKS)
        return f"0,{self.digits(3)}" if kind < 0.9 else f"N{int(self.random() * 60) + 1}"

    def parts(self, category: Category, short: float, brand_first: bool) -> list[str]:
        """The parts of a line, in the order the register prints them."""
        richness = self.random()
        if richness < POOR:
            noun = self.spell(self.pick(category.nouns), short / 2)
            return [noun, self.pick(category.units)] if self.random() < 0.55 else [noun]
        noun, brand = self.spell(self.pick(category.nouns), short), ""
        mods = {self.spell(self.pick(category.mods), short): None}  # a dict keeps the order
        if richness > 1 - RICH:
            brand = self.spell(self.pick(category.brands), short / 2)
            for _ in range(int(self.random() * 2) + 1):
                mods[self.spell(self.pick(category.mods), short)] = None
            if self.random() < 0.35 and noun[:3] != category.head[0][:3]:
                noun = f"{self.spell(category.head, short)} {noun}"
        unit = self.pick(category.units) if self.random() < 0.8 else ""
        return [brand, noun, *mods, unit] if brand_first else [noun, *mods, brand, unit]

    def damage(self, text: str) -> str:
        """Maybe a typing error, a missing space, or Latin look-alike letters."""
        if self.random() < TYPO:  # swap, drop or double one character
            at = int(self.random() * len(text))
            two = text[at : at + 2]
            text = text[:at] + self.pick((two[::-1], two[1:], two[:1] + two)) + text[at + 2 :]
        if self.random() < GLUED:
            text = text.replace(" ", "", 1 if self.random() < 0.7 else 3)
        if self.random() < LOOKALIKE:
            keep = self.random()  # the share of letters that stay
            text = "".join(c if self.random() < keep else c.translate(LOOKALIKES) for c in text)
        return text

    def draw(self, category: Category) -> str:
        """One line, maybe one that was drawn before."""
        case, width, short, article, brand_first = self.pick(REGISTERS)
        if self.random() >= GENERIC:
            parts = [*self.parts(category, short, brand_first), self.tail() if self.random() < 0.55 else ""]
        elif self.random() < 0.7:  # this could stand for any category
            parts = [self.pick(self.generic), self.tail()]
        else:  # and this for any category of the group
            parts = [self.digits(6), self.pick(category.brands)[0]]
        if article and self.random() < 0.7:
            parts.insert(0, self.digits(article))
        return self.damage(case(" ".join(filter(None, parts))))[:width].strip()

    def line(self, category: Category) -> str:
        """One line unlike every other one, whatever its case and spacing."""
        for _ in range(MAX_TRIES):
            text = self.draw(category)
            folded = " ".join(text.lower().split())
            key = int.from_bytes(blake2b(folded.encode(), digest_size=8).digest(), "big")
            if text and key not in self.seen:
                self.seen.add(key)
                return text
        raise LexiconError(f"{category.name}: no new line in {MAX_TRIES} tries")

    def rows(self, sizes: dict[str, int]) -> Iterator[tuple[str, str, str]]:
        """Rows of text, label, split: shuffled, and exactly ``sizes`` of each split."""
        left, splits, labels = dict(sizes), list(sizes), range(len(self.categories))
        missing = [min(MIN_TRAIN_ROWS, left["train"] // len(labels)) for _ in labels]
        for total in range(sum(left.values()), 0, -1):
            at = int(self.random() * total)  # below total, so it falls on one of the rows still due
            split = splits[bisect(list(accumulate(left.values())), at)]
            # What Random.choices does, in a third of its time.
            label = bisect(self.cumulative, self.random() * self.cumulative[-1], 0, len(labels) - 1)
            if split == "train":
                if left["train"] <= sum(missing):  # only the last few rows may have to top up a class
                    label = next(label for label in labels if missing[label])
                missing[label] = max(0, missing[label] - 1)
            left[split] -= 1
            yield self.line(self.categories[label]), "" if split == "unsupervised" else str(label), split


def write_archive(out: Path, generator: Generator, sizes: dict[str, int]) -> None:
    """Stream the archive to another name and rename it, so that no half file is left."""
    part = out.with_name(f"{out.name}.part{os.getpid()}")
    categories = ((label, category.name) for label, category in enumerate(generator.categories))
    data: Iterator[tuple[str, ...]] = chain([("text", "label", "split")], generator.rows(sizes))
    members = {"data.csv": data, "categories.csv": chain([("label", "name")], categories)}
    try:
        with zipfile.ZipFile(part, "w") as archive:
            for name, rows in members.items():
                info = zipfile.ZipInfo(name)  # its date is fixed, so that archives can be compared
                info.compress_type, info.create_system = zipfile.ZIP_DEFLATED, 3
                raw = archive.open(info, "w", force_zip64=True)
                with io.TextIOWrapper(raw, encoding="utf-8", newline="") as stream:
                    csv.writer(stream, lineterminator="\n").writerows(rows)
        part.replace(out)
    finally:
        part.unlink(missing_ok=True)


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Generate the invented sample corpus.")
    parser.add_argument("out", type=Path, metavar="OUT.zip", help="archive to write")
    for name, size in SIZES.items():
        parser.add_argument(f"--{name}", type=int, default=size, help=f"{name} rows (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random source (%(default)s)")
    parser.add_argument("--lexicon", type=Path, default=Path(__file__).with_name("lexicon.yaml"))
    args = parser.parse_args(argv)
    sizes = {"unsupervised" if name == "unlabelled" else name: getattr(args, name) for name in SIZES}
    if min(sizes.values()) < 0:
        parser.error("a number of rows must not be negative")
    if not args.out.name:
        parser.error(f"{args.out} is no name of an archive")
    try:
        write_archive(args.out, Generator(args.lexicon, args.seed), sizes)
    except (LexiconError, OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        parser.exit(1, f"{parser.prog}: error: {' '.join(str(error).split())}\n")


if __name__ == "__main__":
    main()
