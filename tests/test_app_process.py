import pytest

from tests.app_process import check_loopback
from vtw_demo.errors import UserError


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "localhost", "::1"])
def test_this_machine_s_own_addresses(host):
    check_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "::", "10.0.0.1"])
def test_no_address_that_others_reach(host):
    with pytest.raises(UserError, match=r"isn't a loopback address\. Use 127"):
        check_loopback(host)


def test_no_address_at_all():
    with pytest.raises(UserError, match="isn't known"):
        check_loopback("no such host")
