"""A mistake in the experiment file stops snakemake with one sentence before anything runs."""

import pytest

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", ["part.yaml", "claims"])
def test_a_part_of_an_experiment_is_refused_instead_of_laid_over_another(checkout, tmp_path, name):
    config = checkout.top / "configs" / "claims" / "gain.yaml"
    if name != "claims":
        config = tmp_path / name
        config.write_text("seeds: [0]\nmethods: {zero-shot: {}}\n")
    done = checkout.run(tmp_path, dry_run=True, configfile=config)
    assert done.returncode == 1
    assert "Traceback" not in done.stdout
    assert f"{config}: no domains; an experiment file is complete: copy config.yaml" in done.stdout


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("z_dim: 8", "z_dmi: 8", "agents.fb.z_dmi is not a setting; did you mean z_dim?"),
        (
            "batch: 32",
            "learning_rate: 1e-4",
            "agents.fb.learning_rate: '1e-4' is text, not a number (YAML reads 1e-4 as a string; "
            "write 1.0e-4)",
        ),
        (" lola:", " lloa:", "methods: no 'lloa' in bfmpipe.adaptation; it has "),
        ("bar: 5", "br: 5", "claims.gain.br is not a setting; did you mean bar?"),
    ],
)
def test_a_mistake_is_one_sentence_without_a_traceback(checkout, tmp_path, old, new, said):
    text = (checkout.top / "configs" / "smoke.yaml").read_text()
    assert old in text
    config = tmp_path / "bad.yaml"
    config.write_text(text.replace(old, new))
    done = checkout.run(tmp_path, dry_run=True, configfile=config)
    assert done.returncode == 1
    assert "Traceback" not in done.stdout
    assert len([line for line in done.stdout.splitlines() if said in line]) == 1
    assert f"{config}: {said}" in done.stdout
    assert not (tmp_path / "results").exists()
