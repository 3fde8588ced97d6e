"""What several turns share is done once each, and nothing of it is lost."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from vtw_demo.server.shares import Shares


def test_one_turn_takes_all_and_gives_back_what_it_has_not_done():
    shares = Shares(range(5), 1)
    with shares.taken() as share:
        assert list(share) == [0, 1, 2, 3, 4]
        share.popleft()
    with shares.taken() as share:
        assert list(share) == [1, 2, 3, 4]


def test_of_several_each_takes_its_part_of_what_is_left():
    shares = Shares(range(8), 2)
    with shares.taken() as first, shares.taken() as second:
        assert (list(first), list(second)) == ([0, 1, 2, 3], [4, 5])
        second.clear()
        shares.take_more(second)
        assert list(second) == [6]
        shares.is_over = True
        second.clear()
        shares.take_more(second)
        assert not second


@pytest.mark.parametrize("turns", [1, 2, 5])
def test_all_is_done_once_whoever_gives_up_in_between(turns):
    shares, done, changing = Shares(range(100), turns), [], threading.Lock()

    def work(number):
        while True:
            with shares.taken() as share:
                if not share:
                    return
                while share:
                    with changing:
                        done.append(share.popleft())
                    if done[-1] % 7 == number:
                        break

    with ThreadPoolExecutor(turns) as pool:
        list(pool.map(work, range(turns)))
    work(-1)  # a part may have been given back after the others had ended
    assert sorted(done) == list(range(100))
