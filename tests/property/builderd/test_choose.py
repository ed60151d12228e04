"""Whose turn it is: fair among tenants, within each tenant's limit, never given to nobody."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ironworks.builderd.decide import Waiting, choose

TENANTS = [f"tnt_{number}" for number in range(5)]


def _waiting(tenant: str, running: int, served: int) -> Waiting:
    return Waiting(build_id=f"bld_{tenant}", tenant_id=tenant, running=running, served_at_ns=served)


WAITING = st.lists(
    st.builds(_waiting, st.sampled_from(TENANTS), st.integers(0, 4), st.integers(0, 9)),
    unique_by=lambda one: one.tenant_id,
    max_size=5,
)


@given(WAITING, st.integers(1, 4))
def test_a_turn_goes_to_who_has_least_and_has_waited_longest(
    waiting: list[Waiting], limit: int
) -> None:
    chosen = choose(waiting, limit)
    allowed = [one for one in waiting if one.running < limit]
    if chosen is None:
        assert not allowed
        return
    assert chosen in allowed
    for other in allowed:
        assert (chosen.running, chosen.served_at_ns) <= (other.running, other.served_at_ns)


@given(WAITING, st.integers(1, 4))
def test_the_order_of_what_waits_says_nothing(waiting: list[Waiting], limit: int) -> None:
    assert choose(waiting, limit) == choose(list(reversed(waiting)), limit)


@given(st.dictionaries(st.sampled_from(TENANTS), st.integers(1, 20), min_size=2))
def test_with_one_worker_no_tenant_is_served_twice_before_another_that_waits(
    counts: dict[str, int],
) -> None:
    left, served, order = dict(counts), dict.fromkeys(counts, 0), list[str]()
    for now in range(1, sum(counts.values()) + 1):
        waiting = [
            Waiting(build_id=f"bld_{one}", tenant_id=one, running=0, served_at_ns=served[one])
            for one, count in left.items()
            if count
        ]
        chosen = choose(waiting, 1)
        assert chosen is not None
        left[chosen.tenant_id] -= 1
        served[chosen.tenant_id] = now
        order.append(chosen.tenant_id)
    for tenant, count in counts.items():
        others = [one for one in counts if one != tenant]
        # Its n-th build waits for at most n of each other tenant.
        for number, place in enumerate([at for at, one in enumerate(order) if one == tenant], 1):
            assert place <= number - 1 + sum(min(counts[one], number) for one in others)
        assert order.count(tenant) == count
