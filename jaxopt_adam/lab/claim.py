"""A test of the article's claim: Adam needs a third of gradient descent's iterations, for 94 % instead of 79 %."""

import dataclasses
from collections.abc import Sequence

from jaxopt_adam.lab.race import Outcome

BEFORE, AFTER = 0.79, 0.94
# "About" a third, and "about" 79 %: up to two fifths of the iterations, and up to five points more.
MOST_ITERATIONS, MOST_BEFORE = 0.4, BEFORE + 0.05


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Mini-batch gradient descent and Adam, both on the test data and averaged over the seeds.

    Args:
        setting: the learning rates that are compared, in words.
        descent_rate: gradient descent's learning rate.
        adam_rate: Adam's learning rate.
        iterations: the iterations of gradient descent.
        seeds: the number of seeds that accuracies are averaged over.
        descent_accuracy: the accuracy of gradient descent after its iterations.
        adam_iterations: the iterations until Adam first had 94 %; None if it never had.
        adam_accuracy: the accuracy of Adam after a third of the iterations.
    """

    setting: str
    descent_rate: float
    adam_rate: float
    iterations: int
    seeds: int
    descent_accuracy: float
    adam_iterations: int | None
    adam_accuracy: float

    @property
    def adam_part(self) -> bool:
        """True if Adam had 94 % after about a third of the iterations or fewer."""
        return self.adam_iterations is not None and self.adam_iterations <= MOST_ITERATIONS * self.iterations

    @property
    def descent_part(self) -> bool:
        """True if gradient descent ended at about 79 % or below."""
        return self.descent_accuracy <= MOST_BEFORE

    @property
    def held(self) -> bool:
        """True if the claim held."""
        return self.adam_part and self.descent_part

    @property
    def sentence(self) -> str:
        """The judgement in words, with its figures."""
        rates = (
            f"{self.descent_rate:g}"
            if self.descent_rate == self.adam_rate
            else f"{self.descent_rate:g} and {self.adam_rate:g}"
        )
        descent = (
            f"Mini-batch gradient descent reached an accuracy of {100 * self.descent_accuracy:.1f} % after "
            f"{self.iterations} iterations"
        )
        if self.adam_iterations is None:
            third = f"{100 * self.adam_accuracy:.1f} % after a third of the iterations"
            adam = f"Adam never reached 94 %, and was at {third}"
        else:
            share = f"{100 * self.adam_iterations / self.iterations:.0f} % of the {self.iterations}"
            adam = f"Adam reached 94 % after {self.adam_iterations} iterations, {share}"
        reasons = []
        if not self.adam_part:
            reasons.append("Adam did not reach 94 % within about a third of the iterations")
        if not self.descent_part:
            reasons.append("gradient descent did better than about 79 %")
        judgement = "The claim " + (f"did not hold, because {' and '.join(reasons)}" if reasons else "held")
        return f"{self.setting} ({rates}): {descent}. {adam}. {judgement}."


def compare(descent: Outcome, adam: Outcome) -> list[Comparison]:
    """Judge the claim with each learning rate for both, and last with each rule's best."""

    def one(setting: str, descent_rate: int, adam_rate: int) -> Comparison:
        third = int((adam.at <= adam.at[-1] / 3).sum()) - 1
        return Comparison(
            setting=setting,
            descent_rate=float(descent.learning_rates[descent_rate]),
            adam_rate=float(adam.learning_rates[adam_rate]),
            iterations=int(descent.at[-1]),
            seeds=descent.test.shape[1],
            descent_accuracy=float(descent.test[descent_rate].mean(axis=0)[-1]),
            adam_iterations=adam.iterations_to(AFTER, adam_rate),
            adam_accuracy=float(adam.test[adam_rate].mean(axis=0)[third]),
        )

    equal = [one("At the same learning rate for both", rate, rate) for rate in range(len(adam.learning_rates))]
    return [*equal, one("At each rule's best learning rate", descent.best, adam.best)]


def telling(comparison: Comparison, comparisons: Sequence[Comparison]) -> bool:
    """True for the two comparisons to show first: at Adam's best learning rate for both, and at each rule's best."""
    return comparison.adam_rate == comparisons[-1].adam_rate


def verdict(comparisons: Sequence[Comparison], data: str) -> str:
    """The judgement of all comparisons, in a sentence or two."""
    if not comparisons:
        return "The article's claim was not judged: that takes both mini-batch gradient descent and Adam."
    *equal, best = comparisons
    seeds = f"{best.seeds} seed{'s' if best.seeds > 1 else ''}"
    what = (
        "The article's claim is that Adam reaches 94 % in about a third of the iterations that mini-batch gradient "
        f"descent needs to reach 79 %. On {data}, with {best.iterations} iterations and {seeds},"
    )
    held = [f"{each.adam_rate:g}" for each in equal if each.held]
    if held:
        which = f"{len(held)} of the {len(equal)} learning rates tried ({', '.join(held)})"
    else:
        which = f"none of the {len(equal)} learning rates tried"
    second = f"it {'also held' if best.held and held else 'held' if best.held else 'did not hold'}"
    return (
        f"{what} the claim held at {which} when both rules had the same one. When each rule had its own best learning "
        f"rate, {second}."
    )
