"""Linear equations between exponents of scales, solved as they come.

A scale of a value is a product of powers of free scales; its exponents are a linear form. Arrays of forms stand for the
scales along an axis: they hold numbers of forms, so that views of tensors are views of arrays. Positive scales have
rational exponents; signs have exponents modulo 2.
"""

from fractions import Fraction
from typing import Literal

import numpy as np
from jaxtyping import Int

Kind = Literal["positive", "sign"]
Exponent = int | Fraction
Form = tuple[tuple[int, Exponent], ...]
Forms = Int[np.ndarray, "..."]
ZERO = 0
"""Number of the form without terms: a value that is not scaled."""


class Exponents:
    """Unknown exponents, and what is known of them.

    >>> system = Exponents("positive")
    >>> x, y = system.unknowns(2)
    >>> system.require_zero(system.add(np.array([x]), system.times(np.array([y]), Fraction(2))))
    >>> system.solution(y)
    ((0, Fraction(-1, 2)),)
    """

    def __init__(self, kind: Kind):
        self.kind = kind
        self._forms: list[Form] = [()]
        self._numbers: dict[Form, int] = {(): ZERO}
        self._solved: dict[int, Form] = {}
        self._count = 0

    def unknowns(self, count: int) -> Forms:
        """Forms of that many new unknowns."""
        first, self._count = self._count, self._count + count
        return np.array([self._number(((first + i, 1),)) for i in range(count)], dtype=np.int64)

    def add(self, a: Forms, b: Forms) -> Forms:
        """Sums of forms, element by element."""
        a, b = np.broadcast_arrays(a, b)
        if not b.any():
            return a
        if not a.any():
            return b
        pairs, where = np.unique(np.stack([a.ravel(), b.ravel()]), axis=1, return_inverse=True)
        sums = [self._number(self._sum(self._forms[i], self._forms[j])) for i, j in pairs.T.tolist()]
        return np.array(sums, dtype=np.int64)[where.ravel()].reshape(a.shape)

    def times(self, a: Forms, factor: Exponent) -> Forms:
        """Multiples of forms, element by element."""
        found, where = np.unique(a, return_inverse=True)
        multiples = [self._number(self._sum((), self._forms[i], factor)) for i in found.tolist()]
        return np.array(multiples, dtype=np.int64)[where.ravel()].reshape(a.shape)

    def require_zero(self, a: Forms) -> None:
        """Each of the forms is zero: solve for its newest unknown."""
        for number in np.unique(a).tolist():
            form = self.solution(number)
            if form:
                newest, factor = form[-1]
                self._solved[newest] = self._sum((), form[:-1], -factor if abs(factor) == 1 else -1 / Fraction(factor))

    def require_equal(self, a: Forms, b: Forms) -> None:
        """The forms are equal, element by element."""
        if a is not b:
            self.require_zero(self.add(a, self.times(b, -1)))

    def solution(self, number: int) -> Form:
        """A form in the unknowns that are free."""
        form = self._forms[number]
        while any(unknown in self._solved for unknown, _ in form):
            total: Form = ()
            for unknown, factor in form:
                total = self._sum(total, self._solved.get(unknown, ((unknown, 1),)), factor)
            form = total
        return form

    def _sum(self, a: Form, b: Form, factor: Exponent = 1) -> Form:
        """a + factor b, with unknowns in order."""
        total = dict(a)
        for unknown, value in b:
            total[unknown] = total.get(unknown, 0) + factor * value
        if self.kind == "sign":
            return tuple((unknown, 1) for unknown, value in sorted(total.items()) if value % 2)
        return tuple((unknown, value) for unknown, value in sorted(total.items()) if value)

    def _number(self, form: Form) -> int:
        if form not in self._numbers:
            self._numbers[form] = len(self._forms)
            self._forms.append(form)
        return self._numbers[form]
