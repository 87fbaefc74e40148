"""Policy gradients on a cart-pole with 128 seeds and 6 learning rates in one program: python examples/rl.py.

A small network balances a pole on a cart. It learns by REINFORCE (Williams, 1992): actions after which more is gained
than after those of other episodes at the same time become more likely. All 768 agents, each with its own environments,
train in one compiled program, because an optimizer is data: one vmap is over the seeds, the other over the optimizers.
"""

import argparse
import importlib.util
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from jaxopt_adam import Optimizer, adam, grid

RATES = [0.001, 0.004, 0.02, 0.1, 0.4, 2.0]
HIDDEN = 16
EPISODES = 16  # in each iteration
LONGEST = 200  # steps of an episode
DISCOUNT = 0.99
PROGRESS = 10  # iterations between two lines of progress

Params = dict[str, Array]


class Agent(NamedTuple):
    """A policy with its optimizer's state and the key of what comes."""

    params: Params
    state: Any
    key: Array


class Episodes(NamedTuple):
    """Episodes as they went, with axes of time and of episodes."""

    seen: Array  # the positions and velocities at which the policy acted
    actions: Array  # 1.0 for a push to the right, 0.0 for one to the left
    alive: Array  # 1.0 until the pole has fallen, then 0.0


def pushed(cart: Array, action: Array) -> Array:
    """The cart-pole 0.02 s later, as in Barto, Sutton & Anderson, 1983.

    Args:
        cart: the position and velocity of the cart, and the angle and angular velocity of the pole; shape (..., 4).
        action: 1.0 for a push to the right, 0.0 for one to the left.
    """
    _, velocity, angle, spin = jnp.moveaxis(cart, -1, 0)
    gravity, mass, total_mass, half_length, push, seconds = 9.8, 0.1, 1.1, 0.5, 10.0, 0.02
    force = push * (2 * action - 1) + mass * half_length * spin**2 * jnp.sin(angle)
    lever = half_length * (4 / 3 - mass * jnp.cos(angle) ** 2 / total_mass)
    angular = (gravity * jnp.sin(angle) - jnp.cos(angle) * force / total_mass) / lever
    linear = (force - mass * half_length * angular * jnp.cos(angle)) / total_mass
    return cart + seconds * jnp.stack([velocity, linear, spin, angular], axis=-1)


def is_up(cart: Array) -> Array:
    """True while the cart is on the track and the pole within 12 degrees of upright."""
    return (jnp.abs(cart[..., 0]) < 2.4) & (jnp.abs(cart[..., 2]) < jnp.deg2rad(12.0))


def logits(params: Params, cart: Array) -> Array:
    """The logit of the probability of a push to the right."""
    return (jnp.tanh(cart @ params["w1"] + params["b1"]) @ params["w2"])[..., 0]


def play(params: Params, key: Array) -> Episodes:
    """Some episodes, all of them from near the middle of the track."""
    first, key = jax.random.split(key)
    cart = jax.random.uniform(first, (EPISODES, 4), minval=-0.05, maxval=0.05)

    def step(carry: tuple[Array, Array], noise: Array) -> tuple[tuple[Array, Array], Episodes]:
        cart, alive = carry
        action = (noise < jax.nn.sigmoid(logits(params, cart))).astype(jnp.float32)
        after = jnp.where(alive[:, None] > 0, pushed(cart, action), cart)  # what has fallen stays where it is
        return (after, alive * is_up(after)), Episodes(cart, action, alive)

    noise = jax.random.uniform(key, (LONGEST, EPISODES))
    return jax.lax.scan(step, (cart, jnp.ones(EPISODES)), noise)[1]


def gains(alive: Array) -> Array:
    """For each step what is gained from it on, compared to the other episodes at that time, in standard deviations."""

    def step(later: Array, reward: Array) -> tuple[Array, Array]:
        total = reward + DISCOUNT * later
        return total, total

    totals = jax.lax.scan(step, jnp.zeros(EPISODES), alive, reverse=True)[1]
    advantage = alive * (totals - totals.mean(axis=1, keepdims=True))
    return advantage / (jnp.sqrt(jnp.sum(advantage**2) / alive.sum()) + 1e-6)


def iteration(optimizer: Optimizer, agent: Agent) -> tuple[Agent, Array]:
    """Play some episodes and take a step; returns the mean length of the episodes too."""
    key, now = jax.random.split(agent.key)
    episodes = play(agent.params, now)
    advantage = gains(episodes.alive)

    def cost(params: Params) -> Array:
        surprise = optax.sigmoid_binary_cross_entropy(logits(params, episodes.seen), episodes.actions)
        return jnp.sum(surprise * advantage) / episodes.alive.sum()

    updates, state = optimizer.update(jax.grad(cost)(agent.params), agent.state, agent.params)
    params: Any = optax.apply_updates(agent.params, updates)
    return Agent(params, state, key), episodes.alive.sum(axis=0).mean()


def new_agent(optimizer: Optimizer, seed: Array) -> Agent:
    """An agent that has learned nothing."""
    first, second, key = jax.random.split(jax.random.key(seed), 3)
    params = {
        "w1": jax.random.normal(first, (4, HIDDEN)) / 2,
        "b1": jnp.zeros(HIDDEN),
        "w2": jax.random.normal(second, (HIDDEN, 1)) * 0.01,
    }
    return Agent(params, optimizer.init(params), key)


@jax.jit
def train(optimizers: Optimizer, agents: Agent) -> tuple[Agent, Array]:
    """Some iterations of all agents, which have axes of optimizers and of seeds.

    Returns:
        The agents, and the mean lengths of their episodes with a first axis of iterations.
    """
    over_seeds = jax.vmap(iteration, in_axes=(None, 0))
    over_both = jax.vmap(over_seeds)
    return jax.lax.scan(lambda agents, _: over_both(optimizers, agents), agents, length=PROGRESS)


def table(rates: list[float], lengths: np.ndarray) -> str:
    """Quartiles over the seeds of the mean length of the last episodes."""
    last = lengths[-PROGRESS:].mean(axis=0)
    lines = [f"{'learning rate':>13}{'lower quartile':>16}{'median':>8}{'upper quartile':>16}{'seeds above 195':>17}"]
    for rate, each in zip(rates, last, strict=True):
        low, middle, high = np.quantile(each, [0.25, 0.5, 0.75])
        lines.append(f"{rate:13g}{low:16.1f}{middle:8.1f}{high:16.1f}{np.mean(each > 195):17.0%}")
    return "\n".join(lines)


def draw(rates: list[float], lengths: np.ndarray, path: Path) -> None:
    """A panel for each learning rate: the median over the seeds, and half of them around it."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), layout="constrained", dpi=150)
    panels = figure.subplots(-(-len(rates) // 3), min(3, len(rates)), sharex=True, sharey=True, squeeze=False)
    at = np.arange(1, len(lengths) + 1)
    low, middle, high = np.quantile(lengths, [0.25, 0.5, 0.75], axis=2)
    for index, (axes, rate) in enumerate(zip(panels.flat, rates, strict=False)):
        axes.fill_between(at, low[:, index], high[:, index], color="#56B4E9", alpha=0.5, lw=0, label="middle half")
        axes.plot(at, middle[:, index], color="#0072B2", linewidth=1.8, label="median")
        axes.set_title(f"learning rate {rate:g}")
        axes.grid(visible=True, color="#dddddd", linewidth=0.6)
    for axes in panels[-1]:
        axes.set_xlabel("iteration")
    for axes in panels[:, 0]:
        axes.set_ylabel("steps in an episode")
    panels[0, 0].set_ylim(bottom=0)
    panels[0, 0].legend(frameon=False)
    figure.savefig(path, format="png")


def main() -> None:
    """Train all agents, print the table and draw the figure."""
    # Without a usage, an error is one line.
    parser = argparse.ArgumentParser(description=__doc__, usage=argparse.SUPPRESS)
    parser.add_argument("--quick", action="store_true", help="4 seeds, 2 rates and few iterations, which takes seconds")
    parser.add_argument("--figure", type=Path, metavar="FILE", help="a PNG to draw, which needs matplotlib")
    arguments = parser.parse_args()
    if arguments.figure and not arguments.figure.parent.is_dir():
        parser.error(f"--figure: there is no folder {arguments.figure.parent}")
    if arguments.figure and not importlib.util.find_spec("matplotlib"):
        parser.error("--figure: matplotlib is not installed")

    rates, seeds, iterations = ([0.004, 0.1], 4, 30) if arguments.quick else (RATES, 128, 100)
    optimizers, _ = grid(adam, learning_rate=rates)
    agents = jax.vmap(jax.vmap(new_agent, in_axes=(None, 0)), in_axes=(0, None))(optimizers, jnp.arange(seeds))
    lengths = []
    for done in range(0, iterations, PROGRESS):
        print(f"\riteration {done} of {iterations}", end="", file=sys.stderr, flush=True)
        agents, some = train(optimizers, agents)
        lengths.append(np.asarray(some))
    print(file=sys.stderr)
    print(f"{seeds} seeds, iteration {iterations}")
    print(table(rates, np.concatenate(lengths)))
    if arguments.figure:
        draw(rates, np.concatenate(lengths), arguments.figure)


if __name__ == "__main__":
    main()
