"""Models and tensors on disk: the same back, the same bytes, one sentence where damaged."""

import errno
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from bfmpipe.agents import fb, load_model, load_tensors, save_model, save_tensors
from bfmpipe.files import file_digest
from bfmpipe.types import UserError

TENSORS = {
    "b": torch.tensor([1.5, -0.0, float("inf")]),
    "a/deep": torch.arange(6, dtype=torch.int64).reshape(2, 3),
    "scalar": torch.tensor(3.25, dtype=torch.float64),
    "empty": torch.zeros(0, 2),
    "transposed": torch.arange(6.0).reshape(2, 3).T,
}
HEADER = {"kind": "toy", "done": 20, "losses": [{"q": 0.1}]}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "toy.safetensors"
    save_tensors(path, TENSORS, HEADER)
    return path


def one_sentence(call, path):
    with pytest.raises(UserError) as caught:
        call()
    text = str(caught.value)
    assert str(path) in text
    assert "\n" not in text
    return text


# tensors


def test_tensors_and_header_come_back(path):
    tensors, header = load_tensors(path)
    assert header == HEADER
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor)
    assert torch.signbit(tensors["b"][1])


def test_the_same_tensors_give_the_same_bytes_in_any_order(path, tmp_path):
    again = tmp_path / "again.safetensors"
    save_tensors(again, dict(reversed(TENSORS.items())), dict(reversed(HEADER.items())))
    assert again.read_bytes() == path.read_bytes()


def test_a_missing_file_is_named(tmp_path):
    path = tmp_path / "none.safetensors"
    assert one_sentence(lambda: load_tensors(path), path).endswith("no such file")


@pytest.mark.parametrize("keep", [0, 7, 20, -1])
def test_a_truncated_file_is_refused(path, keep):
    path.write_bytes(path.read_bytes()[:keep])
    said = one_sentence(lambda: load_tensors(path), path)
    assert "damaged or not a safetensors file" in said
    assert "run the pipeline again" in said


def test_a_healthy_file_of_another_kind_and_one_that_cannot_be_read(tiny, path, monkeypatch):
    said = one_sentence(lambda: load_tensors(tiny.dataset), tiny.dataset)
    assert said.endswith(": is a Parquet file, not a safetensors file")

    def denied(*_):
        raise OSError(errno.EIO, "it broke")

    monkeypatch.setattr(Path, "read_bytes", denied)
    assert one_sentence(lambda: load_tensors(path), path).endswith(
        "cannot be read: Input/output error"
    )


def test_an_edited_tensor_is_noticed(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert "checksum differs" in one_sentence(lambda: load_tensors(path), path)


def test_no_flipped_byte_changes_a_tensor(path):
    good = path.read_bytes()
    refused = 0
    for position in range(len(good)):
        content = bytearray(good)
        content[position] ^= 0x81
        path.write_bytes(content)
        try:
            tensors, _ = load_tensors(path)
        except UserError:
            refused += 1
            continue
        assert all(torch.equal(tensors[name], tensor) for name, tensor in TENSORS.items())
    assert refused > len(good) / 2


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"bfmpipe": "no JSON"}])
def test_a_safetensors_file_of_others_is_refused(tmp_path, metadata):
    path = tmp_path / "foreign.safetensors"
    save_file({"a": torch.zeros(2)}, path, metadata=metadata)
    said = one_sentence(lambda: load_tensors(path), path)
    assert said.endswith("a safetensors file that bfmpipe did not write")


# models


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = fb.Config(z_dim=4, hidden_dim=8, backward_hidden_dim=8, architecture="concatenated")
    model = fb.Model(config, obs_dim=3, action_dim=2)
    model.obs_mean.fill_(0.5)
    return model


CARD = {"agent": "fb", "domain": "toy", "domain_settings": {}, "seed": 7}


def test_a_loaded_model_acts_and_values_as_the_saved_one(model, tmp_path):
    save_model(tmp_path, model, CARD)
    loaded, card = load_model(tmp_path)
    assert {key: card[key] for key in CARD} == CARD
    assert loaded.config == model.config
    obs, action, z = torch.randn(5, 3), torch.rand(5, 2), torch.randn(5, 4)
    assert torch.equal(loaded.actor(obs, z), model.actor(obs, z))
    assert torch.equal(loaded.psi(obs, action, z), model.psi(obs, action, z))
    assert torch.equal(loaded.phi(obs), model.phi(obs))


def test_what_a_model_computes_and_does_not_save_is_there_again(model, tmp_path, monkeypatch):
    class Computing(fb.Model):
        def __init__(self, config, obs_dim, action_dim):
            super().__init__(config, obs_dim, action_dim)
            self.scale = torch.full((action_dim,), 0.5)
            self.register_buffer("sign", -torch.ones(action_dim), persistent=False)

        def actor(self, obs, z):
            return self.sign * self.scale * super().actor(obs, z)

    monkeypatch.setattr(fb, "Model", Computing)
    made = Computing(model.config, model.obs_dim, model.action_dim)
    save_model(tmp_path, made, CARD)
    loaded, _ = load_model(tmp_path)
    obs, z = torch.randn(3, model.obs_dim), model.sample_z(3, torch.Generator())
    assert torch.equal(loaded.actor(obs, z), made.actor(obs, z))


def test_a_loaded_model_is_frozen(model, tmp_path):
    save_model(tmp_path, model, CARD)
    loaded, _ = load_model(tmp_path)
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())


def test_saving_twice_gives_the_same_bytes(model, tmp_path):
    save_model(tmp_path / "one", model, CARD)
    save_model(tmp_path / "two", load_model_again(tmp_path / "one"), CARD)
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def load_model_again(directory):
    model, _ = load_model(directory)
    return model


def test_a_directory_without_a_model_is_named(tmp_path):
    said = one_sentence(lambda: load_model(tmp_path), tmp_path / "config.json")
    assert "no such file; a model is a directory that holds it" in said


def test_a_model_without_weights_is_named(model_copy):
    (model_copy / "model.safetensors").unlink()
    path = model_copy / "model.safetensors"
    assert one_sentence(lambda: load_model(model_copy), path).endswith("no such file")


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"agent": "fb"}', "\x00\xff"])
def test_a_config_that_describes_no_model_is_refused(model_copy, content):
    path = model_copy / "config.json"
    path.write_bytes(content.encode("latin1"))
    said = one_sentence(lambda: load_model(model_copy), path)
    assert "not the description of a bfmpipe model" in said


NESTED = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"agent": 3}, "not the description of a bfmpipe model: agent: 3 is a number, not text"),
        ({"agent": {}}, "not the description of a bfmpipe model: agent: {} is a mapping, not text"),
        ({"domain": 5}, "not the description of a bfmpipe model: domain: 5 is a number, not text"),
        ({"domain_settings": []}, "domain_settings: [] is a list, not a mapping"),
        ({"obs_dim": -1}, "obs_dim: -1 should be greater than or equal to 1"),
        ({"obs_dim": 4.7}, "obs_dim: 4.7 is not a whole number"),
        ({"action_dim": "2"}, "action_dim: '2' is text, not a whole number"),
        ({"action_dim": True}, "action_dim: true is a truth value, not a whole number"),
        ({"obs_dim": 10**30}, "no network can have the sizes that it names"),
        ({"config": 3}, "config: 3 is a number, not a mapping"),
        ({"weights_sha256": 3}, "weights_sha256: 3 is a number, not text"),
    ],
)
def test_an_entry_that_no_model_has_is_named_with_its_file(edit_card, changed, said):
    directory = edit_card(**changed)
    path = directory / "config.json"
    found = one_sentence(lambda: load_model(directory), path)
    assert found.startswith(f"{path}: ")
    assert said in found


@pytest.mark.parametrize("nested", [NESTED, f'{{"config": {NESTED}}}', '{"config":' * 900 + "3"])
def test_a_config_nested_too_deeply_is_refused(model_copy, nested):
    path = model_copy / "config.json"
    path.write_text(nested + "}" * nested.count("{"))
    said = one_sentence(lambda: load_model(model_copy), path)
    assert "not the description of a bfmpipe model" in said


def test_an_empty_agent_is_named(model_copy):
    path = model_copy / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "agent": None}))
    assert "agent is empty, not text" in one_sentence(lambda: load_model(model_copy), path)


def test_a_config_that_is_a_directory_is_one_sentence(model_copy):
    path = model_copy / "config.json"
    path.unlink()
    path.mkdir()
    said = one_sentence(lambda: load_model(model_copy), path)
    assert said == f"{path}: cannot be read: Is a directory"


def test_an_entry_that_an_observation_has_not_is_named_with_the_file(edit_card, tiny):
    settings = json.loads((tiny.model / "config.json").read_text())["config"]
    directory = edit_card(config={**settings, "fourier_obs": [9]})
    path = directory / "config.json"
    said = one_sentence(lambda: load_model(directory), path)
    assert said == (
        f"{path}: config: fourier_obs is [9]; an observation has 4 entries, numbered 0 to 3"
    )


@pytest.fixture
def other(model, tmp_path):
    """A model of the same shapes as `model`, in a directory beside it."""
    save_model(tmp_path / "one", model, CARD)
    with torch.no_grad():
        for weights in model.parameters():
            weights.add_(1)
    save_model(tmp_path / "other", model, CARD)
    return tmp_path / "other"


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_files_of_two_models_are_refused(other, name):
    one = other.with_name("one")
    (one / name).write_bytes((other / name).read_bytes())
    path = one / "model.safetensors"
    said = one_sentence(lambda: load_model(one), path)
    assert said == (
        f"{path}: is of another model than config.json beside it, which names weights of another "
        "digest; the two files of a model go together"
    )
    load_model(other)


def test_a_model_that_does_not_say_its_digest_is_loaded(other):
    # as earlier versions saved it
    path = other / "config.json"
    card = json.loads(path.read_text())
    assert card.pop("weights_sha256") == file_digest(other / "model.safetensors")
    path.write_text(json.dumps(card))
    load_model(other)


def test_the_weights_are_written_first(model, tmp_path, monkeypatch):
    # or a save that is killed between the two would leave a description of other weights
    monkeypatch.setattr(Path, "write_text", None)  # only config.json is text
    with pytest.raises(TypeError):
        save_model(tmp_path, model, CARD)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_an_unknown_agent_is_named_with_its_file(edit_card):
    directory = edit_card(agent="bf")
    said = one_sentence(lambda: load_model(directory), directory / "config.json")
    assert "no 'bf' in bfmpipe.agents; it has fb" in said


def test_an_unknown_setting_is_named(edit_card, tiny):
    settings = {**tiny.agent["settings"], "z_dmi": 6}
    directory = edit_card(config=settings)
    said = one_sentence(lambda: load_model(directory), directory / "config.json")
    assert "config.z_dmi is not a setting; did you mean z_dim?" in said


def test_weights_of_another_shape_are_named(edit_card, tiny):
    settings = json.loads((tiny.model / "config.json").read_text())["config"]
    directory = edit_card(config={**settings, "hidden_dim": 18})
    said = one_sentence(lambda: load_model(directory), directory / "model.safetensors")
    assert "does not fit config.json: tensor '" in said
    assert "has shape (" in said
    assert "the configuration asks for (" in said


def test_weights_of_another_architecture_are_named(edit_card, tiny):
    settings = json.loads((tiny.model / "config.json").read_text())["config"]
    directory = edit_card(config={**settings, "architecture": "two_embeddings"})
    said = one_sentence(lambda: load_model(directory), directory / "model.safetensors")
    assert "does not fit config.json: tensor '" in said
