"""The currencies that can be money here: those to which ISO 4217 gives a minor unit."""

from collections.abc import Mapping
from types import MappingProxyType

from iso4217 import Currency

# Metals, bond units, drawing rights, XTS and XXX have no minor unit ("N.A."), so no integer amount of them
# means anything: they are left out.
CURRENCY_DIGITS: Mapping[str, int] = MappingProxyType(
    {currency.code: currency.exponent for currency in Currency if currency.exponent is not None}
)
