import numpy as np

LAST_STEP = 2**31 - 1


def following(count):
    """The step after `count` updates; the counter stops at the largest int32."""
    return min(count + 1, LAST_STEP)


def signed_rate(learning_rate, count):
    """The factor of a direction: the negative learning rate, or one where there is none."""
    if learning_rate is None:
        return 1.0
    return -float(learning_rate(count) if callable(learning_rate) else learning_rate)


def square(value):
    """|g|², real."""
    return np.real(value) ** 2 + np.imag(value) ** 2


def quotient(numerator, denominator):
    """A quotient in which nought over nought is nought: without any gradient there is no step."""
    still = (numerator == 0) & (denominator == 0)
    return np.where(still, 0, numerator / np.where(still, 1, denominator))


def wide(param, real=False):
    """Zeros like the parameter, in float64 or complex128."""
    return np.zeros(np.shape(param), np.complex128 if np.iscomplexobj(param) and not real else np.float64)


def rounded(value, dtype):
    """A value after it has rested in a dtype; None is for no rounding. As the compiler does, by way of float32."""
    if dtype is None:
        return value
    return value.astype(np.float32).astype(dtype).astype(np.float64)


def decayed(direction, param, weight_decay, mask, count):
    """A direction with decoupled weight decay, where the mask has the parameter: True, False or a function of it."""
    share = float(weight_decay(count) if callable(weight_decay) else weight_decay)
    chosen = mask(param) if callable(mask) else mask
    return direction + share * param if chosen is None or chosen else direction


def looking_ahead(mu, grad, b1, step):
    """Nesterov's debiased average as Dozat's equations have it: the momentum of the step to come, and this gradient."""
    return b1 * mu / (1 - b1 ** (step + 1)) + (1 - b1) * grad / (1 - b1**step)
