import datetime
import json
import math
from enum import Enum
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import pydantic
import pytest

from bfmpipe.config import Config, PresetConfig, canonical, load_yaml, parse
from bfmpipe.types import UserError


class Size(Enum):
    SMALL = "small"
    LARGE = "large"


class Pretrain(Config):
    agent: Literal["fb", "hilp"] = "fb"
    learning_rate: float = 1
    updates: int = 1000
    hidden: tuple[int, ...] = (64, 64)
    model_z: Annotated[float, pydantic.Field(gt=0)] = 0.5
    clip: float | None = None
    compile: bool = False


class Task(Config):
    name: str
    weights: dict[str, float] = pydantic.Field(default_factory=dict)

    @pydantic.field_validator("name")
    @classmethod
    def _lower(cls, name: str) -> str:
        if name != name.lower():
            raise ValueError(f"{name} is not in lower case")
        return name


class Experiment(Config):
    pretrain: Pretrain = Pretrain()
    tasks: tuple[Task, ...] = ()
    by_domain: dict[str, Task] = pydantic.Field(default_factory=dict)
    extra: Task | None = None
    threads: int | Literal["all"] = 1
    either: Pretrain | Task | None = None
    span: tuple[float, float] = (0.0, 1.0)
    size: Size = Size.SMALL


class Walk(PresetConfig):
    presets: ClassVar = {
        "small": {"speed": 2, "columns": (0, 1), "task": {"name": "run"}},
        "small-maze": {"pretrain": {"updates": 10, "hidden": (8,)}},
    }

    speed: float = 1
    columns: tuple[int, ...] = ()
    pretrain: Pretrain = Pretrain()
    task: Task | None = None


def complaint(mapping, cls=Experiment, **options) -> str:
    with pytest.raises(UserError) as error:
        parse(cls, mapping, "config.yaml", **options)
    return str(error.value)


def pretrain(**settings) -> str:
    return complaint({"pretrain": settings})


def test_parse_fills_in_the_defaults():
    config = parse(Experiment, {"pretrain": {"agent": "hilp"}, "size": "large"}, "config.yaml")
    assert config == Experiment(pretrain=Pretrain(agent="hilp"), size=Size.LARGE)


def test_lists_become_tuples_and_whole_numbers_floats():
    config = parse(Pretrain, {"hidden": [1, 2], "learning_rate": 2}, "config.yaml")
    assert config.hidden == (1, 2)
    assert isinstance(config.learning_rate, float)


def test_a_default_is_held_to_its_type():
    assert isinstance(Pretrain().learning_rate, float)


def test_a_config_is_frozen():
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        Pretrain().updates = 2


def test_a_preset_is_a_set_of_defaults():
    small = parse(Walk, {"preset": "small"}, "config.yaml")
    assert small == Walk(preset="small")
    assert small == Walk(preset="small", speed=2.0, columns=(0, 1), task=Task(name="run"))
    assert (Walk().preset, Walk().speed, Walk(preset=None)) == (None, 1.0, Walk())
    assert parse(Walk, small.model_dump(mode="json"), "what was stored") == small


def test_what_is_set_beside_a_preset_wins():
    given = {"preset": "small", "columns": [3], "task": None}
    found = parse(Walk, given, "config.yaml")
    assert (found.speed, found.columns, found.task) == (2, (3,), None)
    given = {"preset": "small-maze", "pretrain": {"updates": 20, "compile": True}}
    found = parse(Walk, given, "config.yaml").pretrain
    assert found == Pretrain(updates=20, compile=True, hidden=(8,))  # in a section too
    assert Walk(preset="small-maze").pretrain.updates == 10  # the preset itself stays


def test_an_unknown_preset():
    assert complaint({"preset": "smal"}, Walk, at="methods.walk") == (
        "config.yaml: methods.walk: there is no preset 'smal'; did you mean small? "
        "valid: small, small-maze"
    )
    assert complaint({"preset": "paper"}, PresetConfig) == (
        "config.yaml: there is no preset 'paper'; valid: none"
    )
    assert complaint({"preset": 3}, Walk) == "config.yaml: preset: 3 is a number, not text"


def test_errors_beside_a_preset_have_their_places():
    assert complaint({"preset": "small", "pretrain": {"updates": "x"}}, Walk) == (
        "config.yaml: pretrain.updates: 'x' is text, not a whole number"
    )
    assert "config.yaml: sped is not a setting; did you mean speed? valid: preset, " in complaint(
        {"preset": "small", "sped": 1}, Walk
    )


def test_an_unknown_setting():
    valid = "valid: agent, learning_rate, updates, hidden, model_z, clip, compile"
    assert pretrain(learning_rte=1) == (
        "config.yaml: pretrain.learning_rte is not a setting; did you mean learning_rate? " + valid
    )
    assert pretrain(xyz=1) == f"config.yaml: pretrain.xyz is not a setting; {valid}"


@pytest.mark.parametrize(
    ("mapping", "place"),
    [
        ({"tasks": [{"name": "run"}, {"name": "x", "nme": 1}]}, "tasks[1].nme"),
        ({"by_domain": {"name": {"name": "x", "nme": 1}}}, "by_domain.name.nme"),
        ({"extra": {"name": "x", "nme": 1}}, "extra.nme"),
    ],
)
def test_an_unknown_setting_deep_inside(mapping, place):
    assert complaint(mapping) == (
        f"config.yaml: {place} is not a setting; did you mean name? valid: name, weights"
    )


def test_a_section_of_several_forms():
    said = complaint({"either": {"name": "x", "nme": 1}})
    assert "either.nme is not a setting; did you mean name? valid: name, weights" in said


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("1e-4", " (YAML reads 1e-4 as a string; write 1.0e-4)"),
        ("1.5e4", " (YAML reads 1.5e4 as a string; write 1.5e+4)"),
        ("-2E+3", " (YAML reads -2E+3 as a string; write -2.0e+3)"),
        ("0.5", " (write it without quotes)"),
        ("fast", ""),
        ("nan", ""),
    ],
)
def test_text_for_a_number(text, hint):
    said = f"config.yaml: pretrain.learning_rate: '{text}' is text, not a number{hint}"
    assert pretrain(learning_rate=text) == said


def test_the_hint_for_a_number_is_right(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("a: 1e-4\nb: 1.0e-4\nc: 1.5e4\nd: 1.5e+4\ne: -2E+3\nf: -2.0e+3\n")
    read = load_yaml(path)
    assert list(read.values()) == ["1e-4", 1e-4, "1.5e4", 1.5e4, "-2E+3", -2e3]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"updates": "1e6"}, "updates: '1e6' is text, not a whole number "
         "(YAML reads 1e6 as a string; write 1000000)"),
        ({"updates": "7.5"}, "updates: '7.5' is text, not a whole number"),
        ({"updates": 1.0e6}, "updates: 1000000.0 is not a whole number (write 1000000)"),
        ({"updates": 2.5}, "updates: 2.5 is not a whole number"),
        ({"updates": True}, "updates: true is a truth value, not a whole number"),
        ({"updates": None}, "updates is empty, not a whole number"),
        ({"compile": 1}, "compile: 1 is a number, not true or false"),
        ({"compile": "yes"}, "compile: 'yes' is text, not true or false"),
        ({"hidden": 64}, "hidden: 64 is a number, not a list"),
        ({"hidden": [64, "a"]}, "hidden[1]: 'a' is text, not a whole number"),
        ({"clip": [1]}, "clip: [1] is a list, not a number"),
        ({"model_z": -1.0}, "model_z: -1.0 should be greater than 0"),
        ({"agent": "fbb"}, "agent: 'fbb' is not a choice; did you mean fb? valid: fb, hilp"),
        ({"agent": 3}, "agent: 3 is not a choice; valid: fb, hilp"),
        ({"agent": None}, "agent: null is not a choice; valid: fb, hilp"),
        ({"learning_rate": math.nan}, "learning_rate: nan is not a finite number"),
        ({"hidden": [1, -math.inf]}, "hidden[1]: -inf is not a finite number"),
        ({"agent": datetime.date(2026, 1, 2)},
         "agent: 2026-01-02 is a date, not text or a number"),
        ({"agent": Path("fb")}, f"agent: fb is a {type(Path()).__name__}, not text or a number"),
    ],
)  # fmt: skip
def test_a_wrong_value(settings, said):
    assert pretrain(**settings) == f"config.yaml: pretrain.{said}"


@pytest.mark.parametrize(
    ("mapping", "said"),
    [
        ({"pretrain": 3}, "pretrain: 3 is a number, not a mapping"),
        ({"pretrain": None}, "pretrain is empty, not a mapping"),
        ({"tasks": [{}]}, "tasks[0].name is missing"),
        ({"extra": {"name": 1}}, "extra.name: 1 is a number, not text"),
        ({"extra": {"name": "Run"}}, "extra.name: Run is not in lower case"),
        ({"extra": {"name": "x", "weights": {"a": "b"}}},
         "extra.weights.a: 'b' is text, not a number"),
        ({"span": [1]}, "span[1] is missing"),
        ({"span": [1, 2, 3]},
         "span: [1, 2, 3]: Tuple should have at most 2 items after validation, not 3"),
        ({"size": "smal"}, "size: 'smal' is not a choice; did you mean small? valid: small, large"),
        ({"threads": "al"}, "threads: 'al' is text, not a whole number; "
         "threads: 'al' is not a choice; did you mean all? valid: all"),
        ([1], "[1] is a list, not a mapping"),
        (None, "it is empty, not a mapping"),
        ({"pretrain": {1: 2}}, "pretrain: the key 1 is a number, not text (quote it)"),
        ({True: 2}, "the key true is a truth value, not text (quote it)"),
    ],
)  # fmt: skip
def test_a_wrong_structure(mapping, said):
    assert complaint(mapping) == f"config.yaml: {said}"


def test_a_section_knows_its_place():
    said = complaint({"updates": "x"}, Pretrain, at="agents.pretrain")
    assert said == "config.yaml: agents.pretrain.updates: 'x' is text, not a whole number"
    said = complaint({"updates": math.inf}, Pretrain, at="pretrain")
    assert said == "config.yaml: pretrain.updates: inf is not a finite number"
    assert complaint([], Pretrain, at="a") == "config.yaml: a: [] is a list, not a mapping"


def test_three_complaints_are_told_and_the_others_counted():
    said = pretrain(updates="a", hidden="b", compile="c")
    assert said == (
        "config.yaml: pretrain.updates: 'a' is text, not a whole number; "
        "pretrain.hidden: 'b' is text, not a list; "
        "pretrain.compile: 'c' is text, not true or false"
    )
    assert pretrain(updates="a", hidden="b", compile="c", clip="d", x=1).endswith(" (and 2 more)")


def test_a_long_value_is_shortened():
    assert len(pretrain(agent="x" * 1000)) < 150


def test_equal_settings_have_equal_text():
    assert canonical({"b": [1, 2.0, None, True], "a": {"d": "é", "c": 1e-4}}) == (
        r'{"a":{"c":0.0001,"d":"\u00e9"},"b":[1,2.0,null,true]}'
    )
    one = parse(Pretrain, {"learning_rate": 1, "updates": 5}, "a")
    other = parse(Pretrain, {"updates": 5, "learning_rate": 1.0}, "b")
    assert canonical(one) == canonical(other)


def test_canonical_text_parses_to_the_same_config():
    config = Experiment(tasks=(Task(name="run", weights={"x": 0.1}),), size=Size.LARGE)
    assert parse(Experiment, json.loads(canonical(config)), "x") == config


def test_canonical_takes_only_what_json_holds():
    with pytest.raises(UserError, match=r"^a\.b\[0\]: nan is not a finite number$"):
        canonical({"a": {"b": [math.nan]}})
    with pytest.raises(pydantic.ValidationError, match="finite"):
        Pretrain(learning_rate=math.inf)


@pytest.fixture
def read(tmp_path):
    path = tmp_path / "config.yaml"

    def read(text: str) -> dict | str:
        path.write_text(text)
        try:
            return load_yaml(path)
        except UserError as error:
            return str(error).removeprefix(f"{path}: ")

    return read


def test_load_yaml(read):
    assert read("a: {b: [1, 2.5]}\nc: x\n") == {"a": {"b": [1, 2.5]}, "c": "x"}


def test_missing_and_unreadable_files(tmp_path):
    with pytest.raises(UserError, match=r"none\.yaml: no such file$"):
        load_yaml(tmp_path / "none.yaml")
    with pytest.raises(UserError, match=r": cannot be read: Is a directory$"):
        load_yaml(tmp_path)
    (tmp_path / "latin.yaml").write_bytes("a: é".encode("latin-1"))
    with pytest.raises(UserError, match=r"latin\.yaml: is not UTF-8 text$"):
        load_yaml(tmp_path / "latin.yaml")


def test_invalid_yaml(read):
    assert read("a: 1\nb: [1, 2\nc: 3\n") == "line 3: expected ',' or ']', but got ':'"
    assert read("a: 1\n\tb: 2\n").startswith("line 2: found character '\\t'")
    assert read("a: !!python/name:os.system\n").startswith("line 1: could not determine")
    assert read("a: \x07\n").startswith("is not valid YAML: unacceptable character")


def test_a_key_may_stand_once(read):
    assert read("a: 1\nb:\n  c: 1\n  d: 2\n  c: 3\n") == "line 5: 'c' is already set in line 3"
    assert read("{a: 1, a: 2}").startswith("line 1: 'a' is already set")


def test_merged_keys_are_no_repetition(read):
    text = "x: &x {k: 1, l: 1}\na: {i: &b {<<: *x, k: 2}}\nc: {<<: *b, l: 3}\n"
    config = read(text)
    assert config["a"]["i"] == {"k": 2, "l": 1}
    assert config["c"] == {"k": 2, "l": 3}


@pytest.mark.parametrize(("text", "kind"), [("- 1\n", "a list"), ("", "empty"), ("x", "text")])
def test_the_top_level_is_a_mapping(read, text, kind):
    assert read(text) == f"the top level is {kind}, not a mapping"
