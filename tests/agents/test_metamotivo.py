"""Imported checkpoints of Meta Motivo give the numbers that the checkpoint's own networks give.

The reference is written out in plain torch under Meta Motivo's parameter names, one module a head;
several heads are run one by one, and stacked only in the file.
"""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from bfmpipe import api
from bfmpipe.adaptation.protocol import Evaluation
from bfmpipe.agents import fb_cpr, load_model, load_tensors
from bfmpipe.agents.metamotivo import import_metamotivo
from bfmpipe.cli import main
from bfmpipe.envs import make_domain
from bfmpipe.inference import Inference
from bfmpipe.types import UserError

DOCS = Path(__file__).parents[2] / "docs" / "agents.md"
TINY = Path(__file__).parents[3] / "shared" / "data" / "metamotivo-tiny"
OBS, ACTION, D, N, WIDTH = 6, 3, 4, 9, 8


def close(found, wanted, name):
    def say(said):
        return f"{name}: {said}"

    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5, msg=say)


# the reference


def block(i, o, activation=True):
    layers = [nn.LayerNorm(i), nn.Linear(i, o)]
    return nn.ModuleDict({"mlp": nn.Sequential(*layers, *([nn.Mish()] if activation else []))})


def mlp(i, o, layers):
    rest = [m for _ in range(layers - 1) for m in (nn.Linear(WIDTH, WIDTH), nn.ReLU())]
    return nn.Sequential(
        nn.Linear(i, WIDTH), nn.LayerNorm(WIDTH), nn.Tanh(), *rest, nn.Linear(WIDTH, o)
    )


class Net(nn.Module):
    """One head of F or the critic (action_dim > 0), or the actor."""

    def __init__(self, archi, obs_dim, action_dim, out):
        super().__init__()
        self.residual = archi["model"] == "residual"
        self.right, self.trunk = ("embed_sa", "Fs") if action_dim else ("embed_s", "policy")
        self.embed_z = self.embedding(obs_dim + D, archi["embedding_layers"])
        right = self.embedding(obs_dim + action_dim, archi["embedding_layers"])
        self.add_module(self.right, right)
        if self.residual:
            blocks = [block(WIDTH, WIDTH) for _ in range(archi["hidden_layers"])]
            self.add_module(self.trunk, nn.ModuleList([*blocks, block(WIDTH, out, False)]))
        else:
            hidden = [(nn.Linear(WIDTH, WIDTH), nn.ReLU()) for _ in range(archi["hidden_layers"])]
            layers = [m for pair in hidden for m in pair]
            self.add_module(self.trunk, nn.Sequential(*layers, nn.Linear(WIDTH, out)))

    def embedding(self, i, layers):
        if self.residual:
            middle = [block(WIDTH, WIDTH) for _ in range(layers - 2)]
            return nn.ModuleList([block(i, WIDTH), *middle, block(WIDTH, WIDTH // 2)])
        middle = [m for _ in range(layers - 2) for m in (nn.Linear(WIDTH, WIDTH), nn.ReLU())]
        first = [nn.Linear(i, WIDTH), nn.LayerNorm(WIDTH), nn.Tanh()]
        return nn.Sequential(*first, *middle, nn.Linear(WIDTH, WIDTH // 2), nn.ReLU())

    def run(self, layers, x, skipped):
        if not self.residual:
            return layers(x)
        for i, layer in enumerate(layers):
            y = layer["mlp"](x)
            x = x + y if skipped(i) else y
        return x

    def forward(self, obs, z, action=None):
        left = torch.cat([obs, z], -1)
        right = obs if action is None else torch.cat([obs, action], -1)
        right_embedding, trunk = getattr(self, self.right), getattr(self, self.trunk)
        inner = len(self.embed_z) - 1
        left = self.run(self.embed_z, left, lambda i: 0 < i < inner)
        right = self.run(right_embedding, right, lambda i: 0 < i < inner)
        return self.run(trunk, torch.cat([right, left], -1), lambda i: i < len(trunk) - 1)


class Reference:
    """The networks of a checkpoint with random weights, and what they give."""

    def __init__(self, config):
        torch.manual_seed(0)
        archi, obs, action = (config[name] for name in ("archi", "obs_dim", "action_dim"))
        f, critic = archi["f"], archi["critic"]
        self.config = config
        self.F = [Net(f, obs, action, D) for _ in range(f["num_parallel"])]
        self.B = mlp(obs, D, archi["b"]["hidden_layers"])
        self.pi = Net(archi["actor"], obs, 0, action)
        self.Q = [Net(critic, obs, action, 1) for _ in range(critic["num_parallel"])]
        self.D = mlp(D + obs, 1, archi["discriminator"]["hidden_layers"])
        self.norm = nn.BatchNorm1d(obs, affine=False)
        for network in (*self.F, self.B, self.pi, *self.Q, self.D):
            for name, parameter in network.named_parameters():
                nn.init.normal_(parameter, 0.0, 0.5 if name.endswith("weight") else 0.2)
        self.norm.running_mean.normal_()
        self.norm.running_var.copy_(10.0 ** torch.linspace(-4, 1, obs))  # the epsilon matters
        self.norm.eval()

    def tensors(self):
        archi = self.config["archi"]
        tensors = {
            **under("_forward_map", parallel(self.F, archi["f"]["ensemble_mode"])),
            **under("_backward_map.net", self.B.state_dict()),
            **under("_actor", self.pi.state_dict()),
            **under("_critic", parallel(self.Q, archi["critic"]["ensemble_mode"])),
            **under("_discriminator.trunk", self.D.state_dict()),
            **under("_target_forward_map", parallel(self.F[::-1], "batch")),
            "_target_backward_map.net.0.weight": torch.zeros(2, 2),
        }
        if self.config["norm_obs"]:
            tensors |= under("_obs_normalizer", self.norm.state_dict())
        return tensors

    @torch.no_grad()
    def outputs(self, obs, action, z):
        s = self.norm(obs) if self.config["norm_obs"] else obs
        phi = self.B(s)
        if self.config["archi"]["b"]["norm"]:
            phi = phi * D**0.5 / phi.norm(dim=-1, keepdim=True)
        return {
            "psi": torch.stack([head(s, z, action) for head in self.F]),
            "phi": phi,
            "actor": self.pi(s, z).tanh(),
            "critic": torch.stack([head(s, z, action) for head in self.Q]),
            "discriminator": self.D(torch.cat([z, s], -1)),
        }


def under(prefix, state):
    return {f"{prefix}.{name}": tensor for name, tensor in state.items()}


def parallel(heads, mode):
    """Heads as a checkpoint has them: alone; one by one; or matrices (heads, in, out)."""
    states = [head.state_dict() for head in heads]
    if mode == "seq":
        return {k: t for i, s in enumerate(states) for k, t in under(f"models.{i}", s).items()}
    if len(states) == 1:
        return states[0]
    stacked = {}
    for name in states[0]:
        tensors = [s[name].T if s[name].dim() == 2 else s[name][None] for s in states]
        stacked[name] = torch.stack(tensors).contiguous()
    return stacked


def config(*, obs_dim=OBS, action_dim=ACTION, b=None, norm_obs=True, **map_):
    ensemble = {"num_parallel": 2, "ensemble_mode": "batch"}
    archi = {"hidden_dim": WIDTH, "model": "simple", "hidden_layers": 1, "embedding_layers": 2}
    alone = {**archi, **{k: v for k, v in map_.items() if k in archi}}
    return {
        "obs_dim": obs_dim,
        "action_dim": action_dim,
        "device": "cuda",
        "archi": {
            "z_dim": D,
            "norm_z": True,
            "f": {**archi, **ensemble, **map_},
            "b": {"hidden_dim": WIDTH, "hidden_layers": 2, "norm": True, **(b or {})},
            "actor": alone,
            "critic": {**archi, **ensemble, "num_parallel": 3, **map_, "later": 1},
            "discriminator": {"hidden_dim": WIDTH, "hidden_layers": 3},
        },
        "norm_obs": norm_obs,
        "of_a_later_version": {"x": [1, None]},
    }


@pytest.fixture
def export(tmp_path):
    """Write a checkpoint of the reference and import it: reference, source, destination."""

    def write(settings, change=lambda tensors: tensors):
        reference = Reference(settings)
        source = tmp_path / "source"
        source.mkdir()
        (source / "config.json").write_text(json.dumps(settings))
        tensors = {name: t.clone() for name, t in reference.tensors().items()}
        save_file(change(tensors), source / "model.safetensors", metadata={"format": "pt"})
        return reference, source, tmp_path / "model"

    return write


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(1)
    return [torch.randn((N, size), generator=generator) for size in (OBS, ACTION, D)]


def outputs(model, obs, action, z):
    return {
        "psi": model.psi(obs, action, z),
        "phi": model.phi(obs),
        "actor": model.actor(obs, z),
        "critic": model.critic(obs, action, z),
        "discriminator": model.discriminator(obs, z),
    }


# equal numbers


def test_the_tiny_checkpoint_gives_what_it_must(tmp_path):
    if not TINY.is_dir():
        pytest.skip(f"no {TINY}")
    import_metamotivo(TINY, tmp_path)
    model, _ = load_model(tmp_path)
    with np.load(TINY / "expected.npz") as file:
        expected = {name: torch.from_numpy(file[name]) for name in file}
    found = outputs(model, expected["obs"], expected["action"], expected["z"])
    names = {"psi": "forward_map", "phi": "backward_map", "actor": "actor_mean"}
    for name, tensor in found.items():
        close(tensor, expected[names.get(name, name)], name)
    w = expected["z"].flip(0)
    q = model.q(expected["obs"], expected["action"], expected["z"], w)
    close(q, (expected["forward_map"].mean(0) * w).sum(-1), "q")
    assert model.psi_layers() is not None


CASES = {
    "simple": {},
    "simple, deep": {"hidden_layers": 3, "embedding_layers": 4},
    "simple, no trunk": {"hidden_layers": 0},
    "simple, one head": {"num_parallel": 1},
    "simple, one by one": {"ensemble_mode": "seq"},
    "residual": {"model": "residual"},
    "residual, deep": {"model": "residual", "hidden_layers": 3, "embedding_layers": 4},
    "residual, no trunk": {"model": "residual", "hidden_layers": 0},
    "residual, one head": {"model": "residual", "num_parallel": 1},
    "residual, one by one": {"model": "residual", "ensemble_mode": "seq"},
    "features not projected": {"b": {"norm": False, "hidden_layers": 1}},
    "observations not normalised": {"norm_obs": False},
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_an_imported_model_gives_the_reference_numbers(export, inputs, case):
    reference, source, destination = export(config(**case))
    import_metamotivo(source, destination)
    model, _ = load_model(destination)
    assert (model.obs_dim, model.action_dim, model.z_dim) == (OBS, ACTION, D)
    wanted = reference.outputs(*inputs)
    for name, found in outputs(model, *inputs).items():
        assert found.shape == wanted[name].shape
        close(found, wanted[name], name)
    w = inputs[2].flip(0)
    close(model.q(*inputs, w), (wanted["psi"].mean(0) * w).sum(-1), "q")


def test_weights_of_half_precision_become_float32(export, inputs):
    _, source, destination = export(config(), lambda t: {k: v.bfloat16() for k, v in t.items()})
    import_metamotivo(source, destination)
    tensors, _ = load_tensors(destination / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    model, _ = load_model(destination)
    assert model.actor(inputs[0], inputs[2]).isfinite().all()


# what is written


def test_the_model_is_one_of_bfmpipe(export):
    _, source, destination = export(config())
    before = [(source / name).read_bytes() for name in ("config.json", "model.safetensors")]
    import_metamotivo(source, destination)
    model, card = load_model(destination)
    assert isinstance(model, fb_cpr.Model)
    assert card["agent"] == "fb_cpr"
    assert set(card["imported"]["metamotivo"]) == {"config.json", "model.safetensors"}
    assert not any(p.requires_grad for p in model.parameters())
    assert before == [(source / n).read_bytes() for n in ("config.json", "model.safetensors")]
    again = destination.with_name("again")
    again.mkdir()  # an empty directory will do
    import_metamotivo(source, again)
    first, second = ((d / "model.safetensors").read_bytes() for d in (destination, again))
    assert first == second


def test_a_model_without_a_domain_says_so(export):
    _, source, destination = export(config())
    import_metamotivo(source, destination)
    with pytest.raises(UserError, match=r"an imported model without a domain: it has no tasks"):
        api.load(destination)


# a domain


def test_the_humanoid_is_what_its_widths_mean(export, capsys):
    _, source, destination = export(config(obs_dim=358, action_dim=69))
    assert main(["import-metamotivo", str(source), str(destination)]) == 0
    settings = "physics_steps 15, episode_steps 300, body own, start fall"
    assert capsys.readouterr().out.splitlines() == [
        f"{destination}: a model of humanoid ({settings})",
        "returns on this body are not comparable with published ones, which are on HumEnv's "
        "(--domain-set body=humenv)",
    ]
    pretrained = api.load(destination)
    assert pretrained.domain.name == "humanoid"
    assert pretrained.domain.config == make_domain("humanoid", {}).config
    assert pretrained.card["domain_settings"]["body"] == "own"
    assert set(pretrained.card["imported"]["metamotivo"]) == {"config.json", "model.safetensors"}


def test_settings_of_the_domain_are_the_models(export):
    _, source, destination = export(config(obs_dim=358, action_dim=69))
    words = ["--domain-set", "episode_steps=7", "start=default"]
    assert main(["import-metamotivo", str(source), str(destination), *words]) == 0
    domain = api.load(destination).domain
    assert domain.config == make_domain("humanoid", {"episode_steps": 7, "start": "default"}).config


def test_a_model_of_another_domain(export, capsys):
    _, source, destination = export(config(obs_dim=4, action_dim=2))
    words = ["--domain", "point_mass_maze", "--domain-set", "episode_steps=20"]
    assert main(["import-metamotivo", str(source), str(destination), *words]) == 0
    assert capsys.readouterr().out == (
        f"{destination}: a model of point_mass_maze (physics_steps 1, episode_steps 20)\n"
    )
    assert api.load(destination).domain.name == "point_mass_maze"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["--domain", "walker"],
            "{source}: a checkpoint of 6 observations and 3 actions; walker has 24 and 6",
        ),
        (
            ["--domain-set", "start=default"],
            "{source}: a checkpoint of 6 observations and 3 actions; humanoid has 358 and 69",
        ),
        (["--domain", "moon"], "no 'moon' in bfmpipe.envs; it has cheetah, humanoid, "),
        (["--domain-set", "boddy=own"], "domain humanoid: boddy is not a setting; did you mean"),
        (["--domain-set", "body=theirs"], "domain humanoid: body: 'theirs' is not a choice; "),
        (["--domain-set", "body"], "--domain-set: 'body' is not KEY=VALUE"),
        (["--domain-set", "body=own", "body=own"], "--domain-set: body is given twice"),
        (["--domain", "walker", "--domain", "walker"], "--domain is given twice"),
    ],
)
def test_a_domain_that_does_not_fit_is_one_line(export, capsys, words, said):
    _, source, destination = export(config())
    assert main(["import-metamotivo", str(source), str(destination), *words]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    expected = said.format(source=source)
    assert line.removeprefix("bfmpipe import-metamotivo: error: ").startswith(expected)
    assert not destination.exists()


# from a checkpoint to an adapted latent


@pytest.fixture
def humanoid(tmp_path, monkeypatch):
    """The tiny checkpoint as a model of short episodes, in a directory of its own."""
    if not TINY.is_dir():
        pytest.skip(f"no {TINY}")
    monkeypatch.chdir(tmp_path)
    words = ["--domain", "humanoid", "--domain-set", "episode_steps=12"]
    assert main(["import-metamotivo", str(TINY), "OUT", *words]) == 0
    return Path("OUT")


LOLA = {"states": 2, "latents": 2, "horizon": 6}


def test_an_imported_model_adapts_and_plays(humanoid, capsys):
    given = ["--model", "OUT", "--data", "own.parquet"]
    assert main(["roam", *given, "--episodes", "6", "--latent-steps", "5"]) == 0
    assert capsys.readouterr().out.endswith(
        "own.parquet: 72 transitions of humanoid in 6 episodes\n"
    )
    task = ["--task", "move-ego-0-0", "--infer", "reward_weighting=softmax"]
    short = ["--episodes", "4", "--every", "2", "--evaluate", "3"]
    settings = [f"{name}={value}" for name, value in LOLA.items()]
    adapt = ["adapt", *given, *task, "--method", "lola", *short, "--set", *settings]
    assert main(adapt) == 0
    assert "humanoid move-ego-0-0: zero-shot " in capsys.readouterr().out
    latent = Path("move-ego-0-0-lola.safetensors")
    tensors, header = load_tensors(latent)
    assert header["infer"]["reward_weighting"] == "softmax"
    assert header["domain_settings"]["episode_steps"] == 12

    pretrained = api.load("OUT")
    data = api.roam(pretrained, episodes=6, latent_steps=5)
    tasks = pretrained.domain.tasks("mine", ["move-ego-0-0"], {})
    softmax = Inference(reward_weighting="softmax")
    inferred = api.infer(pretrained, tasks, data, inference=softmax)
    assert torch.equal(inferred.z[0], tensors["z_0"])
    *_, last = api.adapt(
        pretrained,
        tasks,
        inferred,
        data,
        method="lola",
        episodes=4,
        every=2,
        evaluation=Evaluation(episodes=3),
        settings=LOLA,
    )
    assert np.array_equal(last.z[0], tensors["z"].numpy())
    assert not torch.equal(tensors["z"], tensors["z_0"])

    assert main(["play", str(latent), "--episodes", "3"]) == 0
    said = re.findall(r"^episode \d+ +(\S+)$", capsys.readouterr().out, re.MULTILINE)
    assert [float(value) for value in said] == pytest.approx(header["returns_after"], abs=0.0051)
    assert main(["play", *given, *task, "--episodes", "2"]) == 0
    assert "zero-shot: mean return " in capsys.readouterr().out


SNIPPET = re.search(r"## Meta Motivo\n.*?```python\n(.*?)```", DOCS.read_text(), re.DOTALL)


def test_the_documentation_runs_as_written(tmp_path, monkeypatch):
    if not TINY.is_dir():
        pytest.skip(f"no {TINY}")
    short = make_domain("humanoid", {"episode_steps": 12})
    import_metamotivo(TINY, tmp_path / "model", short)
    monkeypatch.chdir(tmp_path)
    done = {}
    exec(SNIPPET[1], done)
    with np.load(TINY / "expected.npz") as file:
        d = file["z"].shape[1]
        actions = file["action"].shape[1]
    assert done["action"].shape == (8, actions)
    assert done["F"].shape[1:] == (8, d)
    assert done["B"].shape == (8, d)
    assert done["latent"].z.shape == (1, d)
    assert done["played"].action.shape == (12, 2, actions)


def test_the_command(export, capsys):
    _, source, destination = export(config(model="residual"))
    assert main(["import-metamotivo", str(source), str(destination)]) == 0
    assert capsys.readouterr().out == (
        f"{destination}: networks without a domain, since humanoid has 358 observations and 69 "
        "actions, and these 6 and 3\n"
    )
    load_model(destination)
    (source / "model.safetensors").unlink()
    assert main(["import-metamotivo", str(source), str(destination) + "2"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    path = source / "model.safetensors"
    assert said.err == f"bfmpipe import-metamotivo: error: {path}: no such file\n"


def test_the_list_of_commands_has_it(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    assert "  import-metamotivo  write a checkpoint of Meta Motivo" in capsys.readouterr().out


# bad input


def refused(source, destination):
    with pytest.raises(UserError) as caught:
        import_metamotivo(source, destination)
    said = str(caught.value)
    assert "\n" not in said
    assert not destination.exists()
    return said


def test_no_directory(tmp_path):
    said = refused(tmp_path / "none", tmp_path / "model")
    assert said.startswith(f"{tmp_path / 'none'}: no such directory; a Meta Motivo checkpoint")


def test_the_checkpoint_is_not_overwritten(export):
    _, source, _ = export(config())
    with pytest.raises(UserError, match="is the checkpoint itself; choose another directory"):
        import_metamotivo(source, source / ".." / "source")


def test_a_directory_that_holds_anything_is_not_written_to(export, tiny, model_copy):
    _, source, _ = export(config())
    (model_copy / "README.md").write_text("the card")
    with pytest.raises(UserError) as caught:
        import_metamotivo(source, model_copy)
    said = f"{model_copy}: holds README.md already; name a new directory, or an empty one"
    assert str(caught.value) == said
    for file in tiny.model.iterdir():
        assert (model_copy / file.name).read_bytes() == file.read_bytes()
    with pytest.raises(UserError, match=r"README\.md: is no directory; name a new one"):
        import_metamotivo(source, model_copy / "README.md")


def without(settings, *place):
    *above, last = place
    for name in above:
        settings = settings[name]
    del settings[last]


def changed(settings, value, *place):
    *above, last = place
    for name in above:
        settings = settings[name]
    settings[last] = value


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "no such file; a Meta Motivo checkpoint is a directory that holds it"),
        ("", "not JSON ("),
        ("{", "not JSON ("),
        ("\xff", "not JSON ("),
        ("[]", "not a mapping"),
        ("{}", "obs_dim is missing; action_dim is missing; norm_obs is missing (and 1 more)"),
    ],
)
def test_a_config_that_is_none(export, content, said):
    _, source, destination = export(config())
    path = source / "config.json"
    path.unlink()
    if content is not None:
        path.write_bytes(content.encode("latin1"))
    told = refused(source, destination)
    assert told.startswith(f"{path}: ")
    assert said in told


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda c: without(c, "archi"), "archi is missing"),
        (lambda c: without(c, "archi", "critic"), "archi.critic is missing"),
        (lambda c: without(c, "archi", "f", "hidden_dim"), "archi.f.hidden_dim is missing"),
        (
            lambda c: changed(c, "transformer", "archi", "f", "model"),
            "archi.f.model: 'transformer' is not a choice; valid: simple, residual",
        ),
        (
            lambda c: changed(c, "vmap", "archi", "critic", "ensemble_mode"),
            "archi.critic.ensemble_mode: 'vmap' is not a choice; valid: batch, seq",
        ),
        (lambda c: changed(c, False, "archi", "norm_z"), "archi.norm_z: false is not a choice"),
        (lambda c: changed(c, "8", "archi", "b", "hidden_dim"), "archi.b.hidden_dim: '8' is text"),
        (lambda c: changed(c, -1, "obs_dim"), "obs_dim: -1 should be greater"),
        (lambda c: changed(c, [1], "archi"), "archi: [1] is a list, not a mapping"),
    ],
)
def test_a_config_with_bad_values(export, edit, said):
    _, source, destination = export(config())
    path = source / "config.json"
    content = config()
    edit(content)
    path.write_text(json.dumps(content))
    told = refused(source, destination)
    assert told.startswith(f"{path}: ")
    assert said in told


@pytest.mark.parametrize("keep", [0, 5, 300, -1])
def test_a_truncated_file(export, keep):
    _, source, destination = export(config())
    path = source / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    said = refused(source, destination)
    assert said.startswith(f"{path}: damaged or not a safetensors file (")


def test_no_weights(export):
    _, source, destination = export(config())
    (source / "model.safetensors").unlink()
    assert refused(source, destination) == f"{source / 'model.safetensors'}: no such file"


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("_forward_map.embed_sa.0.weight", (2, OBS + ACTION, WIDTH)),
        ("_critic.Fs.0.bias", (3, 1, WIDTH)),
        ("_actor.policy.2.weight", (ACTION, WIDTH)),
        ("_backward_map.net.1.bias", (WIDTH,)),
        ("_discriminator.trunk.5.weight", (WIDTH, WIDTH)),
        ("_obs_normalizer.running_var", (OBS,)),
    ],
)
def test_a_tensor_that_is_missing_or_has_another_shape(export, name, shape):
    tensors = {}
    _, source, destination = export(config(), lambda t: tensors.update(t) or t)
    path = source / "model.safetensors"
    wrong = torch.zeros(7, 2)
    for content, found in (
        ({k: t for k, t in tensors.items() if k != name}, "none"),
        ({**tensors, name: wrong}, "(7, 2)"),
    ):
        save_file(content, path)
        assert refused(source, destination) == (
            f"{path}: does not fit config.json: tensor '{name}' has shape {found}, the "
            f"configuration asks for {shape}"
        )


@pytest.mark.parametrize("value", [torch.tensor(float("nan")), torch.tensor(3)])
def test_a_tensor_without_finite_numbers(export, value):
    name = "_actor.embed_z.1.weight"
    _, source, destination = export(config(), lambda t: {**t, name: value.repeat(WIDTH)})
    said = refused(source, destination)
    assert f"tensor '{name}' holds values that are no finite numbers" in said


def test_a_config_of_another_checkpoint(export):
    _, source, destination = export(config())
    shutil.copy(source / "config.json", source / "kept.json")
    other = config(model="residual")
    (source / "config.json").write_text(json.dumps(other))
    said = refused(source, destination)
    assert "tensor '_forward_map.embed_z.0.mlp.0.weight' has shape none" in said
