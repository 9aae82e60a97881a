compiler: str
compiled_instruction_sets: list[str]
cuda_build: str
sanitized: bool
sf_width: int
sf_max_layers: int
sf_max_heads: int

def source_digest() -> str: ...
def instruction_set() -> str: ...
def instruction_sets() -> list[str]: ...
def use_instruction_set(name: str) -> None: ...
def leave_one_out_float32(
    reward: int,
    terminated: int,
    bootstrap: int,
    z: int,
    mu: int,
    returns: int,
    advantages: int,
    score_gradient: int,
    nstep: int,
    tasks: int,
    states: int,
    k: int,
    d: int,
    sigma: float,
    discount: float,
    stream: int,
    /,
) -> None: ...
def leave_one_out_float64(
    reward: int,
    terminated: int,
    bootstrap: int,
    z: int,
    mu: int,
    returns: int,
    advantages: int,
    score_gradient: int,
    nstep: int,
    tasks: int,
    states: int,
    k: int,
    d: int,
    sigma: float,
    discount: float,
    stream: int,
    /,
) -> None: ...
def sf_evaluate_float32(
    state: int,
    latent: int,
    scale: int,
    shift: int,
    layers: list[tuple[int, int, int, int, bool]],
    readout: int,
    offset: int,
    offset_by_pair: bool,
    q: int,
    gradients: list[int],
    sizes: tuple[int, int, int],
    heads: int,
    hidden: int,
    hidden_used: int,
    pessimism: float,
    half: bool,
    splits: int,
    threads: int,
    stream: int,
    /,
) -> None: ...
def sf_evaluate_float64(
    state: int,
    latent: int,
    scale: int,
    shift: int,
    layers: list[tuple[int, int, int, int, bool]],
    readout: int,
    offset: int,
    offset_by_pair: bool,
    q: int,
    gradients: list[int],
    sizes: tuple[int, int, int],
    heads: int,
    hidden: int,
    hidden_used: int,
    pessimism: float,
    half: bool,
    splits: int,
    threads: int,
    stream: int,
    /,
) -> None: ...
