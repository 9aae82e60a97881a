import importlib
import sys

import pytest

from bfmpipe import code, plugins
from bfmpipe.types import UserError

FILES = {
    "__init__.py": "",
    "agents/__init__.py": "class Agent: pass\n",
    "agents/base.py": "from abc import ABC\n\nclass Agent(ABC): pass\n\nclass Model(ABC): pass\n",
    "agents/fb.py": "class Config: pass\n\nclass Agent: pass\n\nclass Model: pass\n",
    "agents/hilp.py": "from . import base\n\nclass Agent(base.Agent): pass\n",
    "agents/helpers.py": "def f():\n    class Agent: pass\n",
    "agents/imports.py": "from .fb import Agent\n",
    "agents/_draft.py": "class Agent: pass\n",
    "agents/imported.py": "from .base import Model as M\nclass Model(M): pass\nConfig = dict\n",
    "agents/broken.txt": "class Agent: pass\n",
    "adaptation/__init__.py": "",
    "adaptation/td3.py": "class Method: pass\n",
    "adaptation/td3_scratch.py": "class Method: pass\n",
    "adaptation/zero_shot.py": "class Config: pass\n\nclass Method: name = 'zero shot'\n",
    "envs/__init__.py": "",
    "secret.py": "class Agent: pass\n",
}


@pytest.fixture
def root(tmp_path, monkeypatch):
    for name, text in FILES.items():
        path = tmp_path / "pluginpipe" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path / "pluginpipe"
    for name in [name for name in sys.modules if name.split(".")[0] == "pluginpipe"]:
        del sys.modules[name]


def test_names_are_the_modules_that_define_the_class(root):
    assert plugins.names("agents", root=root) == ("fb", "hilp")
    assert plugins.names("envs", root=root) == ()
    assert "pluginpipe.agents.fb" not in sys.modules


def test_models_that_are_loaded_are_more_than_agents_that_are_trained(root):
    assert plugins.names("models", root=root) == ("fb", "imported")
    module = plugins.load("models", "imported", root=root)
    assert module.__name__ == "pluginpipe.agents.imported"
    with pytest.raises(UserError) as error:
        plugins.load("agents", "imported", root=root)
    assert str(error.value) == (
        "no 'imported' in pluginpipe.agents: imported.py defines no class Agent; it has fb, hilp"
    )
    with pytest.raises(UserError) as error:
        plugins.load("models", "hilp", root=root)
    assert str(error.value) == (
        "no 'hilp' in pluginpipe.agents: hilp.py defines no class Model; it has fb, imported"
    )


def test_names_have_hyphens(root):
    assert plugins.names("adaptation", root=root) == ("td3", "td3-scratch", "zero-shot")


def test_load(root):
    module = plugins.load("adaptation", "zero-shot", root=root)
    assert module.__name__ == "pluginpipe.adaptation.zero_shot"
    assert module.Method.name == "zero shot"


def test_an_unknown_plugin(root):
    with pytest.raises(UserError) as error:
        plugins.load("agents", "foo", root=root)
    assert str(error.value) == "no 'foo' in pluginpipe.agents; it has fb, hilp"


def test_an_unknown_plugin_where_there_is_none(root):
    with pytest.raises(UserError) as error:
        plugins.load("envs", "walker", root=root)
    assert str(error.value) == "no 'walker' in pluginpipe.envs; it has none"


@pytest.mark.parametrize("name", ["_draft", "..secret", "../secret", "", "fb.Agent", "helpers"])
def test_nothing_else_is_imported(root, name):
    with pytest.raises(UserError, match="it has fb, hilp"):
        plugins.load("agents", name, root=root)
    assert not [name for name in sys.modules if name.startswith("pluginpipe")]


def test_a_plugin_has_one_spelling(root):
    with pytest.raises(UserError, match="no 'zero_shot' in"):
        plugins.load("adaptation", "zero_shot", root=root)


def said_of(root, kind, name):
    with pytest.raises(UserError) as error:
        plugins.load(kind, name, root=root)
    return str(error.value)


MINE = "class Config: pass\nclass Agent: pass\nclass Model: pass\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("class Config: pass\n\nclass Agent(:\n", ": line 3: is not Python: "),
        ("class Agent: pass\0\n", ": is not Python: "),
        (f"import bfmpip\n\n{MINE}", ", line 1: raised ModuleNotFoundError: No module named 'bfm"),
        (f"{MINE}\n1 / 0\n", ", line 5: raised ZeroDivisionError: division by zero"),
        (f"{MINE}\nraise SystemExit\n", ", line 5: raised SystemExit"),
        ("class Agent: pass\nclass Model: pass\n", ": defines no class Config"),
        ("class Config: pass\nclass Agent: pass\n", ": defines no class Model"),
    ],
)
def test_a_module_of_ones_own_that_fails_is_named_and_harms_no_other(root, text, said):
    path = root / "agents" / "mine.py"
    path.write_text(text)
    assert {"fb", "hilp"} <= set(plugins.names("agents", root=root))
    assert plugins.load("agents", "fb", root=root)
    found = said_of(root, "agents", "mine")
    assert found.startswith(f"{path}{said}")
    assert "\n" not in found


def test_a_module_without_the_class_is_named(root):
    assert said_of(root, "agents", "helpers") == (
        "no 'helpers' in pluginpipe.agents: helpers.py defines no class Agent; it has fb, hilp"
    )
    assert "stack.py defines no class Agent" in said_of(plugins._PACKAGE, "agents", "stack")


def test_an_unknown_kind(root):
    with pytest.raises(UserError) as error:
        plugins.load("robots", "foo", root=root)
    assert str(error.value) == (
        "no plugins of kind 'robots'; there are adaptation, agents, data, envs, models"
    )


@pytest.mark.parametrize("kind", plugins.PLUGIN_CLASS)
def test_the_registry_of_bfmpipe(kind):
    for name in plugins.names(kind):
        assert hasattr(plugins.load(kind, name), plugins.PLUGIN_CLASS[kind])
    directory = "agents" if kind == "models" else kind
    with pytest.raises(UserError, match=f"no 'foo' in bfmpipe.{directory}; it has "):
        plugins.load(kind, "foo")


def test_every_agent_of_bfmpipe_can_be_loaded():
    assert set(plugins.names("agents")) <= set(plugins.names("models"))


@pytest.fixture
def own(own_modules, monkeypatch):
    """A directory of modules of one's own, as a user has it beside an experiment."""
    monkeypatch.setenv(plugins.VARIABLE, str(own_modules))
    for name, text in {
        "adaptation/shared_by_mine.py": "VALUE = 3\n",
        "adaptation/my_method_1.py": (
            "from bfmpipe.adaptation import lola\n"
            "from bfmpipe.adaptation.shared_by_mine import VALUE\n"
            "from bfmpipe.agents.my_layers_1 import WIDTH\n"
            "class Config(lola.Config): pass\n"
            "class Method(lola.Method): pass\n"
        ),
        "agents/my_layers_1.py": "WIDTH = 16\n",
        "agents/my_model_1.py": (
            "from .my_layers_1 import WIDTH\nclass Config: pass\nclass Model: pass\n"
        ),
    }.items():
        path = own_modules / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return own_modules


def test_modules_of_ones_own_are_found_beside_the_packages(own):
    assert {"lola", "my-method-1"} <= set(plugins.names("adaptation"))
    assert "my_model_1" in plugins.names("models")
    assert "my_model_1" not in plugins.names("agents")
    module = plugins.load("adaptation", "my-method-1")
    assert module.__name__ == "bfmpipe.adaptation.my_method_1"
    assert module.VALUE == 3
    assert plugins.load("models", "my_model_1").__file__ == str(own / "agents" / "my_model_1.py")
    assert plugins.load("adaptation", "lola").__file__ != str(own / "adaptation" / "lola.py")


def test_a_module_of_ones_own_is_imported_as_those_of_the_package_are(own):
    """A script that saves a model needs its class."""
    model = importlib.import_module("bfmpipe.agents.my_model_1")
    assert model is plugins.load("models", "my_model_1")
    assert importlib.import_module("bfmpipe.agents.fb").__file__ != str(own / "agents" / "fb.py")
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("bfmpipe.agents.my_model_2")


def test_a_module_of_ones_own_is_part_of_the_code(own):
    name = plugins.module_name("adaptation", "my-method-1")
    reached = code.reachable(name, own=own)
    assert {name, "bfmpipe.adaptation.lola", "bfmpipe.adaptation.shared_by_mine"} <= set(reached)
    assert "bfmpipe.agents.my_layers_1" in reached
    digests = [code.digest(name, own=own)]
    (own / "adaptation" / "my_method_1.json").write_text("{}")
    digests.append(code.digest(name, own=own))
    (own / "adaptation" / "shared_by_mine.py").write_text("VALUE = 4\n")
    digests.append(code.digest(name, own=own))
    assert len(set(digests)) == 3


def test_what_a_module_of_ones_own_imports_is_python(own):
    path = own / "adaptation" / "shared_by_mine.py"
    path.write_text("VALUE = (\n")
    with pytest.raises(UserError, match=r"shared_by_mine\.py: line 1: is not Python"):
        code.digest("bfmpipe.adaptation.my_method_1", own=own)
    said = said_of(plugins._PACKAGE, "adaptation", "my-method-1")
    assert said.startswith(f"{own}/adaptation/my_method_1.py, line 2: {path}: line 1: is not Py")


def test_a_module_of_ones_own_takes_no_other_ones_name(own):
    (own / "adaptation" / "lola.py").write_text("class Config: pass\nclass Method: pass\n")
    with pytest.raises(UserError, match=r"adaptation/lola\.py: .*lola\.py has this name; choose"):
        plugins.names("adaptation")


def test_a_module_of_ones_own_that_is_none_is_named(own):
    (own / "agents" / "my_model_1.py").write_text("class Config: pass\n")
    assert "my_model_1.py defines no class Model" in said_of(
        plugins._PACKAGE, "models", "my_model_1"
    )
    (own / "agents" / "my_model_1.py").write_text("class Model: pass\nimport bfmpip\n")
    assert said_of(plugins._PACKAGE, "models", "my_model_1").startswith(
        f"{own}/agents/my_model_1.py, line 2: raised ModuleNotFoundError"
    )


def test_a_directory_that_is_not_there_is_named(own_modules):
    assert plugins.own_directory() is None
    with pytest.raises(
        UserError, match=r"BFMPIPE_PLUGINS: .*nowhere is no directory; name one that"
    ):
        plugins.use(own_modules / "nowhere")
    with pytest.raises(UserError, match=r"BFMPIPE_PLUGINS: .* has none; name one that has modules"):
        plugins.use(own_modules)
