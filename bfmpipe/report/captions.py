"""What to see in each figure; the order is that of the page."""

CAPTIONS = {
    "curves_aggregate": (
        "Return against budget",
        "The interquartile mean over all tasks and seeds of a family; bands are {confidence} "
        "bootstrap intervals over the seeds. The tables also have plain means, which count the "
        "best and the worst tasks and may tell another story. See whether a curve leaves the "
        "dashed zero-shot line upwards at once, or falls below it first, and how few episodes most "
        "of the gain takes.",
    ),
    "improvement": (
        "Gain over zero-shot",
        "Change of the mean return at the end of the budget against zero-shot of the same models; "
        "whiskers are {confidence} intervals. Best of N spends a budget of its own (see the "
        "tables) and shows what the model holds, rather than what a method finds.",
    ),
    "performance_profile": (
        "Performance profile",
        "For every return, the share of the runs (a task of a seed each) that end above it; bands "
        "are {confidence} bootstrap intervals over the seeds. A curve above another's all along is "
        "the better method whatever average one takes; where they cross, a method gains on some "
        "tasks what it loses on others.",
    ),
    "curves_per_task": (
        "Every task",
        "The mean over the seeds; bands reach from the lowest seed to the highest. Note that every "
        "panel has a scale of its own. See which tasks the averages above are made of: a family's "
        "gain may come from a single task.",
    ),
    "best_of_n": (
        "Zero-shot among other latents",
        "Each dot is the return of one latent drawn from the data, each column one seed, by rising "
        "number. Dots above the black bar are policies that the model holds and that inference "
        "missed. The diamond is the best dot scored again on the evaluation's start states, so "
        "that it is not flattered by the choice. The open diamond is the dot that the model itself "
        "values most: no environment step was spent to find it.",
    ),
    "diagnosis": (
        "Foretold and gained",
        "Each dot is one task of one seed: what could be said of it before adapting, against the "
        "change of its return by the end of the budget. In turn: the return of zero-shot; the "
        "share of the reward's variance over the data that no weights w on the features can fit, "
        "and that the inferred ones leave; how far the inferred latent z is from the nearest that "
        "the data give, on which the policy was trained; and, over start states, how well the "
        "model's own value Q of zero-shot orders the discounted returns, and their ratio. A ratio "
        "far from one says that the frozen values are miscalibrated, which off-policy methods "
        "inherit. The rank correlation of a panel says how well it foretells the gain; with few "
        "dots it is a weak statement.",
    ),
    "trajectories": (
        "Paths through the maze",
        "Evaluation episodes of the run with the lowest seed (chosen by no result) before and "
        "after adaptation, from the same start states. See where zero-shot stops short of the "
        "target and whether the adapted policy enters it.",
    ),
    "coverage": (
        "States covered by the data",
        "States of the data set, and of as many uniformly random actions, in the cells of a grid "
        "over a few coordinates of the domain, two at a time; white was never visited. The curves "
        "count the visited cells of the whole grid. A model can only learn what happens in states "
        "like those it was shown: see whether the data reach the speeds and postures that the "
        "tasks ask for.",
    ),
    "training": (
        "Pretraining",
        "What the agent reported while it trained, one line a seed. The seeds should agree; a loss "
        "that turns upwards while q keeps climbing is how such models diverge.",
    ),
    "evaluations": (
        "Zero-shot return during pretraining",
        "Each dot is the zero-shot return of the model as it stood, on start states of the "
        "training's own: neither those of the reported evaluation nor of any method. See whether "
        "more updates would still help, and whether the seeds agree.",
    ),
    "spectrum": (
        "Spectrum of the features",
        "Eigenvalues of E[φ φᵀ] over states of the data. A reward is seen through these features: "
        "directions whose eigenvalue is near zero carry none of it, so a line that falls early is "
        "a model of fewer features than it has numbers. The effective rank, the exponential of "
        "the eigenvalues' entropy, says how many.",
    ),
    "q_values": (
        "Expected and received",
        "Each dot is one task of one seed at the end of pretraining: the model's own value of its "
        "zero-shot policy at the start states against the discounted return of those episodes. "
        "Dots above the dashed line are overestimated; those below often lie there because the "
        "features cannot tell a small target from what is around it. Returns stop at an episode's "
        "end and values do not, so even an exact model lies a little above the line where episodes "
        "are short for the discount. The rank correlation says how well values order the start "
        "states of a task.",
    ),
}

TRAINING = ("training", "evaluations", "spectrum", "q_values")
"""The figures of pretraining, which have a section of their own."""


def caption(name: str, confidence: str) -> tuple[str, str]:
    """Title and text of a figure; one that is not known here gets its name."""
    title, text = CAPTIONS.get(name, (name.replace("_", " "), ""))
    return title, text.replace("{confidence}", confidence)


def rank(name: str) -> tuple[int, str]:
    """Where a figure stands on the page."""
    order = list(CAPTIONS)
    return (order.index(name) if name in order else len(order), name)
