"""Units of measure: recognizes unit names and converts quantities ("1.5 cm") to base units."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from midstream.rewards.characters import unify

_TABLE = """
length 1/1000000000 nm nanometer nanometre
length 1/1000000 µm um micrometer micrometre micron
length 1/1000 mm millimeter millimetre
length 1/100 cm centimeter centimetre
length 1/10 dm decimeter decimetre
length 1 m meter metre
length 1000 km kilometer kilometre
length 254/10000 in inch inches
length 3048/10000 ft foot feet
length 9144/10000 yd yard
length 1609344/1000 mi mile
mass 1/1000000 mg milligram
mass 1/1000 g gram gramme
mass 1 kg kilogram kilo
mass 1000 t ton tonne
mass 45359237/100000000 lb lbs
mass 45359237/1600000000 oz ounce
time 1/1000000000 ns nanosecond
time 1/1000000 µs us microsecond
time 1/1000 ms millisecond
time 1 s sec second
time 60 min minute
time 3600 h hr hour
time 86400 d day
time 604800 week wk
month 1 month
month 12 year yr
angle 1 degree deg °
angle_rad 1 rad radian
celsius 1 °c celsius degree_celsius centigrade degree_c
fahrenheit 1 °f fahrenheit degree_fahrenheit degree_f
kelvin 1 k kelvin
volume 1/1000 ml milliliter millilitre
volume 1/100 cl centiliter centilitre
volume 1 l liter litre
volume 1000 m^3 m3 cubic_meter cubic_metre
volume 1/1000 cm^3 cm3 cc cubic_centimeter cubic_centimetre
area 1/10000 cm^2 cm2 square_centimeter square_centimetre
area 1 m^2 m2 square_meter square_metre sqm
area 1000000 km^2 km2 square_kilometer square_kilometre
area 10000 ha hectare
area 40468564224/10000000 acre
square_inch 1 in^2 in2 square_inch square_inches
square_foot 1 ft^2 ft2 square_foot square_feet
square_mile 1 mi^2 square_mile
cubic_foot 1 ft^3 cubic_foot cubic_feet
speed 1 m/s mps meter_per_second metre_per_second
speed 10/36 km/h kmh kph kilometer_per_hour kilometre_per_hour
speed 44704/100000 mph mile_per_hour miles_per_hour
force 1 n newton
energy 1 j joule
energy 1000 kj kilojoule
energy_cal 1 cal calorie
energy_cal 1000 kcal kilocalorie
power 1 w watt
power 1000 kw kilowatt
power 1000000 mw megawatt
voltage 1 v volt
current 1 amp ampere
resistance 1 ω ohm
frequency 1 hz hertz
frequency 1000 khz kilohertz
frequency 1000000 mhz megahertz
frequency 1000000000 ghz gigahertz
pressure 1 pa pascal
pressure 1000 kpa kilopascal
amount 1 mol mole
data 1 byte
data 1000 kb kilobyte
data 1000000 mb megabyte
data 1000000000 gb gigabyte
data 1000000000000 tb terabyte
bit 1 bit
dollar 1 usd dollar
dollar 1/100 cent
euro 1 eur euro €
pound 1 gbp pound £
yen 1 jpy cny yen yuan ¥
rupee 1 inr rupee ₹
person 1 person people
"""


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit as a multiple of the base unit of its dimension."""

    dimension: str
    size: Fraction


def _table() -> dict[str, Unit]:
    units: dict[str, Unit] = {}
    for line in _TABLE.split("\n"):
        if not line:
            continue
        dimension, size, *names = line.split()
        for name in names:
            units[name.replace("_", " ")] = Unit(dimension, Fraction(size))
    return units


_UNITS = _table()
_LETTERS = frozenset("msghdtlLKNJWVΩ°€£¥₹")
"""Single letters that are a unit, in this case: 5M is millions, and 3D has three dimensions."""
_SPELLED = re.compile(
    r"\\(?:text|mathrm|mathit|rm|mbox|operatorname)\s*\{\s*([^{}]*?)\s*\}|\^?\\circ|\^?\{\\circ\}|\\degree|\\[,;!: ]|~"
)
_AFTER = re.compile(
    r"(\s*(?:\\(?:text|mathrm|mathit|mbox)\s*\{[^{}]*\}|\^?\{?\\circ\}?|\\degree|°\s?[A-Za-z]*|[A-Za-zµΩ]+))"
    r"((?:\^\{?|(?=[23]))[23]\}?|/[A-Za-z]+|\s+[A-Za-z]+)?(\s+[A-Za-z]+)?"
)


def unit_of(text: str) -> Unit | None:
    """Return the unit when `text` is nothing else; None for an unknown unit."""
    words = plain_unit(text)
    if words in _UNITS:
        return _UNITS[words]
    singular = re.sub(r"s\b", "", words)
    return _UNITS.get(singular) if len(singular) > 2 else None


def unit_after(text: str, place: int) -> tuple[Unit, int] | None:
    """Return the unit at `place` of `text`, directly after a number, and its end; None when there is none."""
    words = _AFTER.match(text, place)
    if words is None:
        return None
    parts = [part for part in words.groups() if part]
    for count in range(len(parts), 0, -1):
        spelled = "".join(parts[:count])
        unit = unit_of(spelled)
        ends = re.match(r"\s*(?:$|[^\w\s]|or\b|and\b)", text[place + len(spelled) :], re.IGNORECASE) is not None
        # "12 in total", "5 m people": short words are units at the end only.
        if unit is not None and (ends or len(plain_unit(spelled)) > 2 or not spelled[0].isspace()):
            return unit, place + len(spelled)
    return None


def plain_unit(text: str) -> str:
    """Convert a unit to plain lower-case words: LaTeX text and degree signs are resolved, full stops removed."""
    text = unify(text)
    text = _SPELLED.sub(lambda match: match[1] or ("°" if "circ" in match[0] or "degree" in match[0] else " "), text)
    text = text.replace("{", "").replace("}", "").strip(" .$*_`\"'()").strip()
    if len(text) == 1 and text not in _LETTERS:
        return ""
    text = re.sub(r"\s+", " ", text.lower())
    text = re.sub(r"^degrees?\s*(?=[cf]|celsius|fahrenheit)", "°", text).replace("° ", "°")
    text = re.sub(r"^°(celsius|fahrenheit)$", r"\1", text)
    return re.sub(r"^sq(?:uare|\.)?\s+", "square ", text)
