"""What an axis of a tensor counts: units, products of units (digits of an index) and concatenations.

An axis of 12 indices may count 12 units; or 3 heads of 4 values, as the product of two; or 5 channels of one layer
followed by 7 of another, as a concatenation. Operations say that two axes count the same (`unify`) or look at one in
another way (`factor`, `split`); units are then refined, never renumbered differently. Units that an operation tells
apart are frozen, with the reason.

This is unification of terms (Robinson, 1965) with sizes, where a unit may be refined into a product or a concatenation.
"""

from dataclasses import dataclass, field
from math import prod

SHAPES_DISAGREE = "one operation views the axis in blocks that do not fit those of another"


@dataclass(eq=False)
class Units:
    """Interchangeable indices, until something tells them apart."""

    size: int
    reasons: list[str] = field(default_factory=list)
    """Why these units are frozen; empty while they may be renumbered."""
    bent: bool = False
    """Whether something not linear happens to them, so that they may be renumbered but not mixed."""
    refined: "Term | None" = None
    """What these units turned out to be: other units, or a term of several."""


@dataclass(frozen=True, eq=False)
class Product:
    """Digits of an index, slowest first."""

    factors: tuple["Term", ...]

    @property
    def size(self) -> int:
        """Number of indices."""
        return prod(factor.size for factor in self.factors)


@dataclass(frozen=True, eq=False)
class Concat:
    """Stretches of an axis, one behind the other."""

    parts: tuple["Term", ...]

    @property
    def size(self) -> int:
        """Number of indices."""
        return sum(part.size for part in self.parts)


Term = Units | Product | Concat


def resolve(term: Term) -> Term:
    """The term as it is known now: refined units replaced, nested terms flattened, digits of one value dropped."""
    if isinstance(term, Units):
        while isinstance(term, Units) and term.refined is not None:
            term = term.refined
        return term if isinstance(term, Units) else resolve(term)
    if isinstance(term, Product):
        factors: list[Term] = []
        for factor_ in map(resolve, term.factors):
            factors += factor_.factors if isinstance(factor_, Product) else [factor_] if factor_.size != 1 else []
        return factors[0] if len(factors) == 1 else Product(tuple(factors)) if factors else Units(1)
    parts: list[Term] = []
    for part in map(resolve, term.parts):
        parts += part.parts if isinstance(part, Concat) else [part] if part.size else []
    return parts[0] if len(parts) == 1 else Concat(tuple(parts))


def leaves(term: Term) -> list[Units]:
    """All units in the term, in order."""
    term = resolve(term)
    if isinstance(term, Units):
        return [term]
    return [leaf for inner in (term.factors if isinstance(term, Product) else term.parts) for leaf in leaves(inner)]


def freeze(term: Term, *reasons: str) -> None:
    """Nothing in the term may be renumbered any more."""
    for leaf in leaves(term):
        leaf.reasons += [reason for reason in reasons if reason not in leaf.reasons]


def bend(term: Term) -> None:
    """Something not linear happens to each index of the term."""
    for leaf in leaves(term):
        leaf.bent = True


def refine(units: Units, term: Term) -> None:
    """From now on the units are the term, which inherits what is known of them."""
    assert units.size == term.size and units.refined is None
    if units.reasons:
        freeze(term, *units.reasons)
    if units.bent:
        bend(term)
    units.refined = term


def unify(a: Term, b: Term) -> None:
    """Both terms count the same indices in the same order."""
    a, b = resolve(a), resolve(b)
    assert a.size == b.size, (a, b)
    if a is b or a.size == 1:
        return
    if isinstance(a, Units):
        refine(a, b)
    elif isinstance(b, Units):
        refine(b, a)
    elif isinstance(a, Concat) or isinstance(b, Concat):
        rest: Term
        parted, rest = (a, b) if isinstance(a, Concat) else (b, a)
        assert isinstance(parted, Concat)
        for part in parted.parts:
            head, rest = split(rest, part.size)
            unify(part, head)
    else:
        _unify_products(a, b)


def _unify_products(a: Product, b: Product) -> None:
    first, second = sorted((a, b), key=lambda term: term.factors[0].size)
    slow = first.factors[0]
    found = factor(second, slow.size)
    if found is None:
        freeze(a, SHAPES_DISAGREE)
        freeze(b, SHAPES_DISAGREE)
        return
    unify(slow, found[0])
    unify(Product(first.factors[1:]), found[1])


def factor(term: Term, slow: int) -> tuple[Term, Term] | None:
    """The term as a slow digit of that many values and a fast one of the rest; `None` if it cannot be seen so."""
    term = resolve(term)
    fast, remainder = divmod(term.size, slow)
    if remainder:
        return None
    if slow == 1:
        return Units(1), term
    if fast == 1:
        return term, Units(1)
    if isinstance(term, Units):
        digits = Units(slow), Units(fast)
        refine(term, Product(digits))
        return digits
    if isinstance(term, Product):
        first, rest = term.factors[0], Product(term.factors[1:])
        if slow % first.size == 0:
            found = factor(rest, slow // first.size)
            return found and (Product((first, found[0])), found[1])
        found = factor(first, slow)
        return found and (found[0], Product((found[1], rest)))
    if any(part.size % fast for part in term.parts):
        return None
    digit_parts = [factor(part, part.size // fast) for part in term.parts]
    digits_found = [found for found in digit_parts if found is not None]
    if len(digits_found) < len(digit_parts):
        return None
    for _, other in digits_found[1:]:
        unify(digits_found[0][1], other)
    return Concat(tuple(high for high, _ in digits_found)), digits_found[0][1]


def split(term: Term, at: int) -> tuple[Term, Term]:
    """The first `at` indices of the term, and the others."""
    term = resolve(term)
    if at in (0, term.size):
        return (term, Concat(())) if at else (Concat(()), term)
    if isinstance(term, Units):
        ends = Units(at), Units(term.size - at)
        refine(term, Concat(ends))
        return ends
    if isinstance(term, Concat):
        first, rest = term.parts[0], Concat(term.parts[1:])
        if at >= first.size:
            head, tail = split(rest, at - first.size)
            return Concat((first, head)), tail
        head, tail = split(first, at)
        return head, Concat((tail, rest))
    slow, fast = term.factors[0], Product(term.factors[1:])
    whole, within = divmod(at, fast.size)
    before, after = split(slow, whole)
    if not within:
        return _times(before, fast), _times(after, fast)
    # The cut goes through one copy of the fast digits.
    after = split(after, 1)[1]
    head, tail = split(fast, within)
    return Concat((_times(before, fast), head)), Concat((tail, _times(after, fast)))


def _times(slow: Term, fast: Term) -> Term:
    return Product((slow, fast)) if slow.size else Concat(())


def view(axes: list[Term], shape: list[int]) -> list[Term]:
    """Axes of a tensor after a reshape to `shape`; what cannot be followed is frozen."""
    out: list[Term] = []
    for before, after in view_blocks([axis.size for axis in axes], shape):
        rest: Term = Product(tuple(axes[i] for i in before))
        digits: list[Term] = []
        for size in (shape[i] for i in after):
            found = factor(rest, size)
            if found is None:
                freeze(Product(tuple(axes[i] for i in before)), SHAPES_DISAGREE)
                digits = [Units(shape[i], [SHAPES_DISAGREE]) for i in after]
                break
            digits, rest = [*digits, found[0]], found[1]
        out += digits
    return out


def view_blocks(before: list[int], after: list[int]) -> list[tuple[list[int], list[int]]]:
    """The shortest runs of axes before and after a reshape that hold the same values.

    >>> view_blocks([2, 12, 5], [2, 3, 4, 5])
    [([0], [0]), ([1], [1, 2]), ([2], [3])]
    """
    blocks, i, j = [], 0, 0
    while i < len(before) or j < len(after):
        rows, columns, left, right = list[int](), list[int](), 1, 1
        while not rows or not columns or left != right:
            if i < len(before) and (not rows or left <= right or j == len(after)):
                rows, left, i = [*rows, i], left * before[i], i + 1
            elif j < len(after):
                columns, right, j = [*columns, j], right * after[j], j + 1
            else:
                break  # one side has only axes of one value left
        blocks.append((rows, columns))
    return blocks
