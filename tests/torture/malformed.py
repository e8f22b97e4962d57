"""Command lines that are malformed by construction, as hypothesis strategies: one mistake among options that are fine.

Hypothesis's `|` between two strategies means one or the other.
"""

import os
import random
import re
import string
from dataclasses import dataclass

from hypothesis import assume
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy, just, sampled_from

from torture import options
from torture.contradictions import CONTRADICTIONS, OF_DRAWING
from torture.mistake import RUN, Mistake, key_of, mistake_of
from torture.options import FINE, GROUPS

LONG = 3000  # characters: as many as Hydra's parser, which is written in Python, reads in a fraction of a second


@dataclass(frozen=True)
class Line:
    """A malformed command line."""

    program: str  # train, sample or eval
    kind: str
    arguments: list[str]
    mentions: str


def among_fine_options(program: str, kind: str, mistake: Mistake, source: random.Random) -> Line:
    """The mistake among fine options, all in any order."""
    taken = [*map(key_of, mistake.arguments), *mistake.without]
    fine = [o for o in FINE[mistake.among or program] if not any(_related(key_of(o), key) for key in taken)]
    arguments = source.sample(fine, source.randint(0, min(5, len(fine))))
    if program != "train" and "ckpt" not in taken:
        arguments.append(f"ckpt={RUN}")
    arguments += mistake.arguments
    if not mistake.together:
        source.shuffle(arguments)
    return Line(program, kind, arguments, mistake.mentions)


def mistakes(program: str) -> dict[str, SearchStrategy[Mistake]]:
    """What can be wrong in a command line of a program, by kind."""
    of_all = {
        "a misspelt key": _misspelt_key(program),
        "a misspelt option": _misspelt_option(program),
        "an unknown key": _unknown(program),
        "a value of a wrong type": _wrong_type(program),
        "a value out of range": _out_of_range(program),
        "broken grammar": _broken_grammar(program),
        "a broken reference": _broken_reference(program),
        "more than one value": _more_than_one_value(program),
        "something missing": _missing(program),
        "a contradiction": sampled_from(CONTRADICTIONS[program]),
        "a wrong path": _wrong_path(program),
        "a wrong flag": _wrong_flag(),
    }
    of_train = {"a sign too many": _already_there(), "a wrong change of a run": _wrong_change(), "a sweep": _sweep()}
    return of_all | (of_train if program == "train" else {})


def _related(one: str, other: str) -> bool:
    """Whether one key is the other or holds it."""
    return f"{one}.".startswith(f"{other}.") or f"{other}.".startswith(f"{one}.")


# Values --------------------------------------------------------------------------------------------------------------

_REAL = {"null", "true", "false", "nan", "inf", "auto", "hydra", "cuda", "cpu", "mps"}.union(
    *(options.names(program) for program in GROUPS),
    *(known for program in GROUPS for known in GROUPS[program].values()),
)
WORDS = st.from_regex(r"[a-z][a-z_]{2,9}", fullmatch=True).filter(lambda word: word not in _REAL)
WHOLE = st.integers().map(str)
FRACTIONS = st.floats(allow_nan=False, allow_infinity=False).map(str)
NEGATIVE = st.floats(max_value=-1e-300, allow_infinity=False).map(str)
NOT_FINITE = sampled_from(["nan", "inf", "-inf", "NaN", "+inf"])
BOOLEANS = sampled_from(["true", "false", "True", "FALSE"])
NULL = sampled_from(["null", "NULL"])
EMPTY = sampled_from(["", "''", '""', "' '"])
QUOTED = st.integers().map(lambda number: f"'{number}'")
SEVERAL = st.lists(WHOLE | WORDS, min_size=2, max_size=4).map(",".join)
LISTS = st.lists(WHOLE | WORDS | NULL, max_size=4).map(lambda items: f"[{','.join(items)}]")
DICTS = st.dictionaries(WORDS, WHOLE, min_size=1, max_size=3).map(
    lambda items: f"{{{','.join(f'{key}:{value}' for key, value in items.items())}}}"
)
# The shell hands on any bytes but NUL. Those that are no UTF-8 are surrogates in Python (PEP 383).
BYTES = st.binary(max_size=40).map(lambda content: os.fsdecode(content.replace(b"\0", b"")))
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)
JUNK = st.text("[](){}'\",:=$\\~+!?*&|<>;#@%^`/ \t\n\x1b\x07ä\u202e5a", min_size=1, max_size=6)
LONG_TEXT = (TEXT | JUNK | WORDS).filter(bool).map(lambda text: (text * LONG)[:LONG])


def _setting(keys: list[str], *values: SearchStrategy[str]) -> SearchStrategy[Mistake]:
    prefixes = sampled_from(["", "++"])
    return st.builds(lambda p, k, v: mistake_of(f"{p}{k}={v}"), prefixes, sampled_from(keys or [""]), st.one_of(values))


def _one_edit(word: str) -> SearchStrategy[str]:
    """`word` with a letter lost, changed or added, or two exchanged."""
    letters, places = string.ascii_lowercase + "_0", range(len(word))
    edits = {word[:i] + word[i + 1 :] for i in places}
    edits |= {word[:i] + word[i + 1] + word[i] + word[i + 2 :] for i in places[:-1]}
    edits |= {word[:i] + letter + word[i + kept :] for i in places for letter in letters for kept in (0, 1)}
    return sampled_from(sorted(edit for edit in edits - {word} if re.fullmatch("[a-z][a-z_0-9]*", edit)))


# Mistakes ------------------------------------------------------------------------------------------------------------


@st.composite
def _misspelt_key(draw: st.DrawFn, program: str) -> Mistake:
    """One edit away from a real key, which the message has to suggest."""
    parts = draw(sampled_from([*options.keys(program), *GROUPS[program]])).split(".")
    place = draw(st.integers(0, len(parts) - 1))
    meant = parts[place]
    parts[place] = draw(_one_edit(meant))
    assume(parts[place] not in options.names(program))
    prefix = draw(sampled_from(["", "+", "++", "~"]))
    value = draw(sampled_from(["3", "abc", "null", "[1,2]", "linear", "''"]))
    key = ".".join(parts)
    # A short word, or one of two that are nearly the same, may well be taken for another.
    clear = len(meant) > 4 and not meant.startswith(("beta", "keep_", "sample"))
    return mistake_of(
        f"~{key}" if prefix == "~" else f"{prefix}{key}={value}", f"did you mean '{meant}'" if clear else parts[place]
    )


def _misspelt_option(program: str) -> SearchStrategy[Mistake]:
    def of(group: str, option: str) -> SearchStrategy[Mistake]:
        clear = len(option) > 4 and not option.startswith(("unet", "adam"))
        wrong = _one_edit(option).filter(lambda word: word not in GROUPS[program][group])
        return wrong.map(lambda word: mistake_of(f"{group}={word}", f"did you mean '{option}'" if clear else None))

    return st.one_of(of(group, option) for group, known in GROUPS[program].items() for option in known)


def _unknown(program: str) -> SearchStrategy[Mistake]:
    """Groups, options and keys that bear no likeness to real ones, and keys below what holds no others."""
    groups = sampled_from([group for group in GROUPS[program] if group not in options.OPTIONAL_GROUPS[program]])
    added = sampled_from(["", "+"])
    forced = sampled_from(["", "+", "++"])
    several = st.lists(WORDS, min_size=1, max_size=3).map(lambda words: f"[{','.join(words)}]")
    return st.one_of(
        st.builds(lambda p, a, b: mistake_of(f"{p}{a}={b}"), forced | just("~"), WORDS, WORDS),
        st.builds(lambda p, g, a, b: mistake_of(f"{p}{g}.{a}={b}"), forced, groups, WORDS, WORDS),
        st.builds(lambda g, a, b: mistake_of(f"{g}.{a}.{b}={b}", a), groups, WORDS, WORDS),
        st.builds(lambda p, g, a, b: mistake_of(f"{p}{g}/{a}={b}"), added, groups, WORDS, WORDS),
        st.builds(lambda p, g, a, b: mistake_of(f"{p}{g}@{a}={b}", g), added, groups, WORDS, WORDS),
        st.builds(lambda g, a: mistake_of(f"{g}={a}"), groups, WORDS | WORDS.map(str.upper) | WHOLE | NULL | several),
        st.builds(lambda a, b: mistake_of(f"hydra/{a}={b}"), WORDS, WORDS),
        st.builds(lambda a, b: mistake_of(f"hydra.{a}={b}"), WORDS, WORDS),
        st.builds(
            lambda k, a: mistake_of(f"{k}.{a}=1", k.rpartition(".")[2]), sampled_from(options.keys(program)), WORDS
        ),
        st.builds(lambda g, a: mistake_of(f"{g}._target_=no_such_{a}.{a}"), groups, WORDS),
        st.builds(lambda g, a: mistake_of(f"{g}._target_={a}"), groups, WHOLE | BOOLEANS | EMPTY | LISTS),
    )


def _wrong_type(program: str) -> SearchStrategy[Mistake]:
    rest = LISTS | DICTS | EMPTY
    not_nullable = [key for key in options.keys(program) if key not in options.NULLABLE[program]]
    whole = [*options.LEAST[program], *options.ANY_WHOLE[program]]
    numbers = [_setting(list(options.NUMBERS[program]), WORDS, BOOLEANS, NOT_FINITE, QUOTED, rest)]
    return st.one_of(
        _setting(whole, WORDS, FRACTIONS, BOOLEANS, NOT_FINITE, QUOTED, rest),
        *(numbers if options.NUMBERS[program] else []),
        _setting(options.SWITCHES[program], WORDS, WHOLE, FRACTIONS, QUOTED, rest),
        _setting(options.CHOICES[program], WORDS, WHOLE, FRACTIONS, BOOLEANS, rest),
        _setting(options.TEXTS[program], LISTS, DICTS),  # what looks like a number is a text as well
        _setting(options.LISTS[program], WORDS, WHOLE, FRACTIONS, BOOLEANS, DICTS, QUOTED),
        _setting(not_nullable, NULL),
    )


def _out_of_range(program: str) -> SearchStrategy[Mistake]:
    values = {key: st.integers(max_value=least - 1).map(str) for key, least in options.LEAST[program].items()}
    values |= {key: sampled_from([*some, "-1"]) | NEGATIVE for key, some in options.NUMBERS[program].items()}
    # A run without previews does not ask whether its schedule has as many steps.
    without = {"sampler.steps": ("trainer.preview_every",)}
    impossible = [
        Mistake((f"{key}={value}",), "", without=without.get(key, ()))
        for key, some in options.IMPOSSIBLE[program].items()
        for value in some
    ]
    return st.one_of(sampled_from(impossible), *(_setting([key], of) for key, of in values.items()))


def _broken_grammar(program: str) -> SearchStrategy[Mistake]:
    """What is no override at all, and values that are not a whole number however they are read."""
    inside = st.builds(lambda text, place: f"{text[:place]}5{text[place:]}", JUNK, st.integers(0, 6))
    no_number = (JUNK | inside | sampled_from(_BROKEN_VALUES) | TEXT | BYTES | LONG_TEXT).filter(
        lambda text: re.fullmatch(r"[ \t]*[+-]?[0-9_]+[ \t]*", text) is None
    )
    no_override = (TEXT | BYTES | JUNK | LONG_TEXT).filter(
        lambda text: not text.startswith("-") and re.split("[.@:/ \t]", key_of(text).strip(" \t"))[0] not in _REAL
    )
    keys = sampled_from(list(options.LEAST[program]))
    return st.one_of(
        st.builds(lambda key, value: mistake_of(f"{key}={value}", ""), keys, no_number),
        no_override.map(lambda text: mistake_of(text, "")),
        st.builds(lambda key, broken: mistake_of(broken.format(key), ""), keys, sampled_from(_BROKEN_KEYS)),
    )


_BROKEN_VALUES = [
    *("[", "[1,2", "[1,,2]", "{a:1", "'5", '"5', "5'", "(5", "5)", "=5", "5,", ",5", "5:6", "${", "$(5)", "int("),
    *("int(x)", "no_such(5)", "range(", "5 #", "5;6", "`5`", "5\n", "\x1b[31m5"),
]
_BROKEN_KEYS = [
    *("{}", "{}[0]=1", ".{}=1", "{}.=1", "{} 1", "={}", "{}:1", " {}", "+{}", "+++{}=1", "~~{}", "-={}", "@{}=1"),
    *("", "=", "=5", "~", "+", "~=", "+=5", " ", ".", "."),
]


def _broken_reference(program: str) -> SearchStrategy[Mistake]:
    """`${...}` that leads nowhere or in a circle, `???` for what must be given."""
    where = ["${no_such}", "${no.such}", "${oc.env:DDPM_NOT_SET}", "${no_such:1}", "???", "${KEY}", "${oc.decode:'['}"]
    keys = sampled_from([key for key in options.keys(program) if key not in options.LISTS[program]])
    return st.builds(lambda key, to: mistake_of(f"{key}={to.replace('KEY', key)}"), keys, sampled_from(where))


def _more_than_one_value(program: str) -> SearchStrategy[Mistake]:
    """What only a sweep could do."""
    functions = ["choice(1,2)", "range(1,5)", "interval(0,1)", "glob(*)", "shuffle(1,2)", "sort(2,1)", "tag(a,1,2)"]
    return _setting([*options.keys(program), *GROUPS[program]], SEVERAL, sampled_from(functions))


def _missing(program: str) -> SearchStrategy[Mistake]:
    deleted = sampled_from([mistake_of(f"~{key}") for key in options.REQUIRED[program]])
    if program != "train":
        return deleted | sampled_from(
            [Mistake((), "ckpt", without=("ckpt",)), mistake_of("ckpt="), mistake_of("ckpt=null")]
        )
    unsaid = [
        mistake_of("data=folder", "data.path"),
        Mistake(("experiment=folder_64",), "data.path", without=("data",)),
    ]
    return deleted | sampled_from(unsaid)


def _already_there() -> SearchStrategy[Mistake]:
    """A `+` before what there is already, a `~` with another value than it has."""
    keys = sampled_from([*options.LEAST["train"], *options.SWITCHES["train"]])
    groups = sampled_from([(g, o) for g, known in GROUPS["train"].items() if g != "experiment" for o in known])
    return st.one_of(
        keys.map(lambda key: mistake_of(f"+{key}=1")),
        groups.map(lambda choice: mistake_of(f"+{choice[0]}={choice[1]}")),
        st.builds(lambda key, value: mistake_of(f"~{key}={value}"), keys, WORDS),
    )


def _wrong_path(program: str) -> SearchStrategy[Mistake]:
    """Runs, checkpoints, images and places to write to that are not there or not what they should be."""
    nowhere = st.one_of(
        sampled_from(["nowhere", "a/b/c", "/dev/null", "/dev/null/x", ".", "~", "' '", "'a\nb'", "'a\n\n\n\n\nb'"]),
        sampled_from(["a" * LONG, "a/" * (LONG // 2), "'\udcff'", "'\x1b[2J'", "/proc/self/mem"]),
        WORDS,
    )
    unwritable = sampled_from(["/dev/null", "/proc/x", "a" * 300])
    if program != "train":
        unlike = sampled_from(["abc", "'0'", "a" * 64])
        return st.one_of(
            nowhere.map(lambda path: mistake_of(f"ckpt={path}")),
            unlike.map(lambda value: mistake_of(f"ckpt_sha256={value}", "SHA-256")),
            unwritable.map(lambda path: mistake_of(f"out={path}")),
            *(_wrong_image_paths(nowhere, unwritable) if program == "eval" else []),
        )
    folder = ("data=folder", "model=unet_16", "data.image_size=16")
    return st.one_of(
        nowhere.map(lambda path: mistake_of(f"resume={path}")),
        nowhere.map(lambda path: Mistake((*folder, f"data.path={path}"), "data")),
        nowhere.map(lambda path: Mistake(("data=mnist", f"data.root={path}"), "data", without=("model",))),
        unwritable.map(lambda path: mistake_of(f"output_dir={path}")),
        just(mistake_of(f"name={'a' * 300}")),
    )


def _wrong_image_paths(nowhere: SearchStrategy[str], unwritable: SearchStrategy[str]) -> list[SearchStrategy[Mistake]]:
    """Of images that are evaluated, of what they are compared with, and of weights that look at them."""
    return [
        nowhere.map(lambda path: Mistake((f"samples={path}",), "samples", without=OF_DRAWING)),
        nowhere.map(lambda path: Mistake(("reference=images", f"reference.path={path}"), "reference.path")),
        nowhere.map(lambda path: Mistake(("features=classifier", f"features.weights={path}"), "features.weights")),
        unwritable.map(lambda path: mistake_of(f"reference.save={path}")),
        unwritable.map(lambda path: mistake_of(f"reference.save={path}/x.npz")),
    ]


def _wrong_change() -> SearchStrategy[Mistake]:
    """A finished run to resume, and a change that would make it another, or that is no change at all."""
    changes = [
        *("schedule.timesteps=7", "model.base_channels=24", "optimizer.lr=1e-5", "seed=8", "trainer.batch_size=24"),
        *("schedule=linear", "data=mnist", "data.image_size=32", "ema.decays=[0.5]", "trainer.precision=bf16"),
        *("trainer.steps=abc", "trainer.steps=0", "trainer.steps=null", "trainer.stepz=9", "++trainer.stepz=9"),
        *("trainer.keep_last=0", "trainer.device=tpu", "trainer.log_every=[1]"),
        *("data.holdout=8", "trainer.eval_every=3", "trainer.eval_images=1", "trainer.keep_best=fd", "objective=kd"),
        *("~trainer.steps", "sede=3", "trainer.steps=${nothing}", "trainer.steps=5,6", "trainer.steps=["),
    ]
    return sampled_from(changes).map(
        lambda change: Mistake((f"resume={RUN}", change), mistake_of(change).mentions, "resume")
    )


def _wrong_flag() -> SearchStrategy[Mistake]:
    known = [
        *("--config-dir", "--config-name", "--config-path", "--cfg", "--package", "--experimental-rerun", "-c", "-cd"),
        *("--cfg x", "--info x", "--config-dir no", "--config-name no", "--config-path no", "--config-dir=no"),
        *("--package x", "-p x", "--resolve", "--run --multirun", "-r -m", "--run=5", "--cfg job --run", "--cfg=x"),
        *(
            "--experimental-rerun x.pickle",
            "--config-d x",
            "--mult",
            "-x",
            "--resume x",
            "-1",
            "-=5",
            "--trainer.steps=5",
        ),
    ]
    unknown = (WORDS | TEXT.filter(bool)).map(lambda word: (f"--no-{word}",))
    return (sampled_from(known).map(str.split) | unknown).map(lambda flags: Mistake(tuple(flags), "", together=True))


def _sweep() -> SearchStrategy[Mistake]:
    """With -m, what is wrong with the command line and not with one of its runs."""
    broken = ["trainer.steps=[", "trainer.steps=1,", "=1,2", "foo", "hydra.run.dir=x", "hydra.sweep.dir=a,b", "seed='1"]
    return sampled_from(broken).map(lambda argument: Mistake(("-m", argument), ""))
