"""Synthetic episodes in ExORL's exact format, as files."""

import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np

DIMS = {"walker": (24, 6, 18), "quadruped": (78, 12, 57), "toy": (3, 2, 5)}


def domain(name="toy", physics_steps=10):
    """What an episode must fit, without a simulation."""
    obs_dim, action_dim, physics_dim = DIMS[name]
    return SimpleNamespace(
        name=name,
        config=SimpleNamespace(physics_steps=physics_steps),
        obs_dim=obs_dim,
        action_dim=action_dim,
        physics_dim=physics_dim,
    )


def episode(seed, name="toy", steps=1000, reward_width=1):
    """Arrays of one episode, as ExORL names them; a seed decides them."""
    rng = np.random.default_rng(seed)
    obs_dim, action_dim, physics_dim = DIMS[name]
    rows = steps + 1
    arrays = {
        "observation": rng.standard_normal((rows, obs_dim), np.float32),
        "action": rng.uniform(-1, 1, (rows, action_dim)).astype(np.float32),
        "discount": np.ones((rows, 1), np.float32),
        "physics": rng.standard_normal((rows, physics_dim)),
        "reward": rng.random((rows, reward_width), np.float32),
    }
    arrays["action"][0] = 0
    arrays["reward"][0] = 0
    return arrays


def write(directory: Path, count, name="toy", steps=1000, reward_width=1):
    """`count` episodes under the names that ExORL's own collection gives them."""
    directory.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        arrays = episode(i, name, steps, reward_width)
        np.savez_compressed(directory / f"episode_{i:06d}_{steps}.npz", **arrays)
    return directory


def pack(directory: Path, path: Path, compression=zipfile.ZIP_DEFLATED):
    """The zip that holds the directory as the published ones do."""
    with zipfile.ZipFile(path, "w", compression, compresslevel=1) as file:
        for member in sorted(directory.rglob("*.npz")):
            file.write(member, f"datasets/walker/rnd/buffer/{member.name}")
    return path
