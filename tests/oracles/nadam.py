"""NAdam (Dozat, 2016) and NAdamW: Adam and AdamW with the look ahead unless told otherwise."""

from .adam import Adam, Adamw


class Nadam(Adam):
    def __init__(self, learning_rate, b1=0.9, b2=0.999, eps=1e-8, eps_root=0.0, mu_dtype=None, *, nesterov=True):
        super().__init__(learning_rate, b1, b2, eps, eps_root, mu_dtype, nesterov=nesterov)


class Nadamw(Adamw):
    def __init__(
        self,
        learning_rate,
        b1=0.9,
        b2=0.999,
        eps=1e-8,
        eps_root=0.0,
        mu_dtype=None,
        weight_decay=1e-4,
        mask=None,
        *,
        nesterov=True,
    ):
        super().__init__(learning_rate, b1, b2, eps, eps_root, mu_dtype, weight_decay, mask, nesterov=nesterov)
