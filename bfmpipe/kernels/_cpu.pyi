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
