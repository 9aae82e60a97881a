"""Updates a second of FB's training, against plain PyTorch: python -m benchmarks.training [cuda].

`Plain` is a single-file implementation of the same losses: a network a head made of nn.Linear,
n x n matrices by einsum, loss.backward() through the forward map in the actor's turn, Adam at its
defaults, targets in a loop over parameters, float32. Its two forms of the loss are both in use:
indexing the matrices with the mask of the off-diagonal entries, and multiplying by it. Ours and it
get the same weights, batches and random numbers first, and must give the same losses.

On the CPU at both sizes with one thread and with two, also the plain one under autocast and, where
ours multiplies float32 by oneDNN (`agents.products`), with that; and our other agents. On a GPU the
plain one also compiled with CUDA graphs, in float32 and under autocast, and three seeds at once.
"""

import copy
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measuring import Device, machine, matrix_peak, start, table, time_alternately
from bfmpipe import plugins
from bfmpipe.agents import fb
from bfmpipe.agents.base import Batch
from bfmpipe.agents.learner import Learner, LearnerConfig
from bfmpipe.agents.products import fast_float32, onednn_is_better
from bfmpipe.networks import perturb, project_z

OBS, ACTION = 24, 6  # walker


class Embedding(nn.Sequential):
    def __init__(self, in_features: int, hidden: int, out_features: int) -> None:
        super().__init__(
            nn.Linear(in_features, hidden),
            nn.LayerNorm(hidden),
            nn.Tanh(),
            nn.Linear(hidden, out_features),
            nn.ReLU(),
        )


class Head(nn.Module):
    """Two embeddings, a trunk, and the last layer."""

    def __init__(self, obs: int, left: int, right: int, hidden: int, out: int) -> None:
        super().__init__()
        self.left = Embedding(obs + left, hidden, hidden // 2)
        self.right = Embedding(obs + right, hidden, hidden // 2)
        self.trunk = nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU())
        self.out = nn.Linear(hidden, out)

    def forward(self, obs: Tensor, left: Tensor, right: Tensor | None) -> Tensor:
        right = obs if right is None else torch.cat([obs, right], -1)
        left = self.left(torch.cat([obs, left], -1))
        return self.out(self.trunk(torch.cat([left, self.right(right)], -1)))


class Forward(nn.Module):
    def __init__(self, c: fb.Config) -> None:
        super().__init__()
        self.F1, self.F2 = (Head(OBS, c.z_dim, ACTION, c.hidden_dim, c.z_dim) for _ in range(2))

    def forward(self, obs: Tensor, z: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        return self.F1(obs, z, action), self.F2(obs, z, action)


class Backward(nn.Module):
    def __init__(self, c: fb.Config) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(OBS, c.backward_hidden_dim),
            nn.LayerNorm(c.backward_hidden_dim),
            nn.Tanh(),
            nn.Linear(c.backward_hidden_dim, c.backward_hidden_dim),
            nn.ReLU(),
            nn.Linear(c.backward_hidden_dim, c.z_dim),
        )

    def forward(self, obs: Tensor) -> Tensor:
        return project_z(self.layers(obs))


class Plain:
    """FB at the settings of `fb.Config`: two embeddings, two heads, one layer of the trunk."""

    def __init__(
        self,
        c: fb.Config,
        device: str,
        *,
        indexed: bool = False,
        autocast: bool = False,
        compiled: bool = False,
    ) -> None:
        self.c, self.device = c, device
        self.indexed, self.autocast = indexed, autocast
        self.forward_net, self.backward_net = Forward(c).to(device), Backward(c).to(device)
        self.actor = Head(OBS, c.z_dim, 0, c.hidden_dim, ACTION).to(device)
        self.forward_target = copy.deepcopy(self.forward_net)
        self.backward_target = copy.deepcopy(self.backward_net)
        self.fb_optimiser = torch.optim.Adam(
            [*self.forward_net.parameters(), *self.backward_net.parameters()], lr=c.learning_rate
        )
        self.actor_optimiser = torch.optim.Adam(self.actor.parameters(), lr=c.actor_learning_rate)
        eye = torch.eye(c.batch, device=device)
        self.mask, self.index = 1 - eye, eye == 0
        self.losses: tuple[Callable, Callable] = (self.fb_loss, self.actor_loss)
        if compiled:
            self.losses = tuple(torch.compile(x, mode="reduce-overhead") for x in self.losses)

    def act(self, obs: Tensor, z: Tensor, noise: Tensor) -> Tensor:
        return perturb(torch.tanh(self.actor(obs, z, None)), noise)

    def fb_loss(self, batch: Batch, z: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            next_action = self.act(batch.next_obs, z, noise)
            target_F1, target_F2 = self.forward_target(batch.next_obs, z, next_action)
            target_B = self.backward_target(batch.next_obs)
            target_M = torch.einsum("sd,td->st", (target_F1 + target_F2) / 2, target_B)
        F1, F2 = self.forward_net(batch.obs, z, batch.action)
        B = self.backward_net(batch.next_obs)
        M1, M2 = (torch.einsum("sd,td->st", F, B) for F in (F1, F2))
        fb_loss = sum(
            self.off_diagonal(M - self.c.discount * target_M) - M.diag().mean() for M in (M1, M2)
        )
        gram = torch.einsum("sd,td->st", B, B)
        return fb_loss, self.off_diagonal(gram) - gram.diag().mean()

    def off_diagonal(self, M: Tensor) -> Tensor:
        if self.indexed:
            return 0.5 * M[self.index].pow(2).mean()
        return 0.5 * (M * self.mask).pow(2).sum() / (len(M) * (len(M) - 1))

    def actor_loss(self, batch: Batch, z: Tensor, noise: Tensor) -> Tensor:
        action = self.act(batch.obs, z, noise)
        F1, F2 = self.forward_net(batch.obs, z, action)
        Q = ((F1 * z).sum(-1) + (F2 * z).sum(-1)) / 2
        return -Q.mean()

    def draw(self) -> dict[str, Tensor]:
        c, device = self.c, self.device

        def noise() -> Tensor:
            noise = torch.randn(c.batch, ACTION, device=device)
            return (noise * c.noise_std).clamp(-c.noise_clip, c.noise_clip)

        return {
            "z": project_z(torch.randn(c.batch, c.z_dim, device=device)),
            "goal": torch.randperm(c.batch, device=device),
            "is_goal": torch.rand(c.batch, 1, device=device) < c.goal_fraction,
            "next_noise": noise(),
            "actor_noise": noise(),
        }

    def update(self, batch: Batch, draws: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        draws = draws or self.draw()
        torch.compiler.cudagraph_mark_step_begin()
        autocast = torch.autocast(self.device, torch.bfloat16, enabled=self.autocast)
        with torch.no_grad():
            goals = self.backward_net(batch.next_obs)[draws["goal"]]
            z = torch.where(draws["is_goal"], goals, draws["z"])

        with autocast:
            fb_loss, ortho_loss = self.losses[0](batch, z, draws["next_noise"])
        self.fb_optimiser.zero_grad()
        (fb_loss + self.c.ortho_coef * ortho_loss).backward()
        self.fb_optimiser.step()

        with autocast:
            actor_loss = self.losses[1](batch, z, draws["actor_noise"])
        self.actor_optimiser.zero_grad()
        actor_loss.backward()
        self.actor_optimiser.step()

        with torch.no_grad():
            for net, target in (
                (self.forward_net, self.forward_target),
                (self.backward_net, self.backward_target),
            ):
                for p, target_p in zip(net.parameters(), target.parameters(), strict=True):
                    target_p.data.copy_(self.c.target_tau * p + (1 - self.c.target_tau) * target_p)
        return {
            "fb_loss": fb_loss.detach(),
            "ortho_loss": ortho_loss.detach(),
            "q": -actor_loss.detach(),
        }

    @torch.no_grad()
    def copy_weights(self, model: fb.Model) -> None:
        """Those of our model, into the networks and their targets."""
        for p, head in enumerate((self.forward_net.F1, self.forward_net.F2)):
            _copy_head(head, model.forward_map, p)
        _copy_head(self.actor, model.policy.map, 0)
        self.backward_net.layers.load_state_dict(model.backward_map.layers.state_dict())
        self.forward_target.load_state_dict(self.forward_net.state_dict())
        self.backward_target.load_state_dict(self.backward_net.state_dict())


def _copy_head(head: Head, ours: nn.Module, p: int) -> None:
    theirs, found = head.state_dict(), {}
    for name, value in ours.state_dict().items():
        of_head = value[p]
        found[name] = of_head.t() if theirs[name].dim() == 2 else of_head.squeeze(0)
    head.load_state_dict(found)


def random_batch(n: int, device: str) -> Batch:
    obs, next_obs, future = (torch.randn(n, OBS, device=device) for _ in range(3))
    return Batch(obs, 2 * torch.rand(n, ACTION, device=device) - 1, next_obs, future)


def learner(agent: str, settings: Mapping[str, Any], device: str, seeds: int = 1, **how: Any):
    module = plugins.load("agents", agent)
    config = module.Config(**settings)
    agents = [module.Agent(config, OBS, ACTION) for _ in range(seeds)]
    generators = [torch.Generator(device).manual_seed(seed) for seed in range(seeds)]
    return Learner(agents, generators, LearnerConfig(**how))


def check(c: fb.Config, device: str) -> None:
    """The first updates of both have the same losses."""
    ours, plain = learner("fb", dict(c), device), Plain(c, device)
    plain.copy_weights(ours.agents[0].model)
    generator = torch.Generator(device)
    for _ in range(6):  # on a GPU the last ones are replayed
        batch = random_batch(c.batch, device)
        generator.set_state(ours.generators[0].get_state())
        draws = ours.agents[0].draw(batch, generator, ("fb", "actor"))
        found, expected = ours.update([batch]), plain.update(batch, draws)
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-4)


def flops(update: Callable[[], object]) -> float:
    """Of the matrix products of an update."""
    with FlopCounterMode(display=False) as counter:
        update()
    return counter.get_total_flops()


def on_cpu() -> None:
    for threads in (1, 2):
        torch.set_num_threads(threads)
        print(f"## FB\n\n{machine('cpu')}" if threads == 1 else machine("cpu"))
        peaks = [matrix_peak(dtype, "cpu") for dtype in (torch.float32, torch.bfloat16)]
        for size in (1024, 256):
            settings = {"hidden_dim": size, "batch": size}
            c = fb.Config(**settings)
            check(c, "cpu")
            batch = random_batch(size, "cpu")
            forms = {
                "plain, index": Plain(c, "cpu", indexed=True),
                "plain, mask": Plain(c, "cpu"),
                "plain, mask, autocast": Plain(c, "cpu", autocast=True),
            }
            calls = {name: partial(plain.update, batch) for name, plain in forms.items()}
            if onednn_is_better():
                calls["plain, mask, oneDNN"] = fast_float32()(
                    partial(forms["plain, mask"].update, batch)
                )
            for precision in ("float32", "bfloat16"):
                ours = learner("fb", settings, "cpu", precision=precision)
                calls[f"ours, {precision}"] = partial(ours.update, [batch])
            operations = {name: flops(call) for name, call in calls.items()}
            found = time_alternately(calls, rounds=5, block=0.15)
            rows = []
            for name, seconds in found.items():
                peak = peaks["bfloat16" in name or "autocast" in name]
                ratios = (found[f"plain, {x}"].wall / seconds.wall for x in ("index", "mask"))
                rows.append(
                    (
                        name,
                        f"{1 / seconds.wall:.1f}",
                        f"{1e3 * seconds.cpu:.1f}",
                        *(f"{ratio:.2f}" for ratio in ratios),
                        f"{1e-9 * operations[name]:.1f}",
                        f"{1e-9 * operations[name] / seconds.wall / peak:.0%}",
                    )
                )
            print(f"\nhidden {size}, batch {size}, d {c.z_dim}\n")
            head = ("", "updates/s", "CPU, ms", "x index", "x mask", "GFLOP", "of the peak")
            print(table(head, rows) + "\n")
    torch.set_num_threads(1)
    rows = []
    for agent in ("hilp", "psm"):
        settings = {"hidden_dim": 256, "batch": 256, "z_dim": 50}
        batch = random_batch(256, "cpu")
        calls = {
            precision: partial(learner(agent, settings, "cpu", precision=precision).update, [batch])
            for precision in ("float32", "bfloat16")
        }
        found = time_alternately(calls, rounds=5, block=0.15)
        rows.append((agent, *(f"{1 / seconds.wall:.1f}" for seconds in found.values())))
    print("## Other agents, hidden 256, batch 256, d 50, updates/s, 1 thread\n")
    print(table(("", "float32", "bfloat16"), rows))


def on_gpu() -> None:
    settings = {"hidden_dim": 1024, "batch": 1024, "z_dim": 100}
    c = fb.Config(**settings)
    check(c, "cuda")
    batch = random_batch(c.batch, "cuda")
    plain = {
        "plain": {},
        "plain, CUDA graphs": {"compiled": True},
        "plain, CUDA graphs, autocast": {"compiled": True, "autocast": True},
    }
    calls = {name: partial(Plain(c, "cuda", **how).update, batch) for name, how in plain.items()}
    seeds = {}
    ways: list[tuple[int, dict[str, bool]]] = [(1, {"cuda_graphs": False})]
    ways += [(n, {"compile": compiled}) for n in (1, 3) for compiled in (False, True)]
    for n, how in ways:
        ours = learner("fb", settings, "cuda", n, precision="bfloat16", **how)
        name = f"ours, bfloat16, {n} seed{'s'[: n - 1]}"
        name += ", compiled" * how.get("compile", False)
        name += ", launched one by one" * (not how.get("cuda_graphs", True))
        calls[name], seeds[name] = partial(ours.update, [batch] * n), n
    operations = flops(partial(learner("fb", settings, "cuda").update, [batch]))
    for call in calls.values():
        for _ in range(8):  # recorded only after some
            call()
    found = time_alternately(calls, rounds=7, block=0.5)
    peak = matrix_peak(torch.bfloat16, "cuda")
    rows = []
    for name, seconds in found.items():
        rate = seeds.get(name, 1) / seconds.wall
        ratios = (rate * found[x].wall for x in plain)
        share = f"{1e-9 * operations * rate / peak:.0%}" if name in seeds else ""
        rows.append((name, f"{rate:.0f}", *(f"{ratio:.2f}" for ratio in ratios), share))
    print(f"{machine('cuda')}\n\nhidden 1024, batch 1024, d 100\n")
    head = ("x plain", "x CUDA graphs", "x CUDA graphs, autocast", "of the bfloat16 peak")
    print(table(("", "updates x seeds / s", *head), rows))


def main(device: Device = "cpu") -> None:
    torch.manual_seed(0)
    on_gpu() if device == "cuda" else on_cpu()


if __name__ == "__main__":
    start(main)
