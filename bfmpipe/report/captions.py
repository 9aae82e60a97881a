"""What to see in each figure; the order is that of the page."""

CAPTIONS = {
    "curves_aggregate": (
        "Return against budget",
        "The interquartile mean over all tasks and seeds of a family; bands are {confidence} "
        "bootstrap intervals over the seeds. See whether a curve leaves the dashed zero-shot line "
        "upwards at once, or falls below it first, and how few episodes most of the gain takes.",
    ),
    "improvement": (
        "Gain over zero-shot",
        "Change of the mean return at the end of the budget against zero-shot of the same models; "
        "whiskers are {confidence} intervals. Best of N spends a budget of its own (see the "
        "tables) and shows what the model holds, rather than what a method finds.",
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
}


def caption(name: str, confidence: str) -> tuple[str, str]:
    """Title and text of a figure; one that is not known here gets its name."""
    title, text = CAPTIONS.get(name, (name.replace("_", " "), ""))
    return title, text.replace("{confidence}", confidence)


def rank(name: str) -> tuple[int, str]:
    """Where a figure stands on the page."""
    order = list(CAPTIONS)
    return (order.index(name) if name in order else len(order), name)
