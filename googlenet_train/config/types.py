"""The types that settings have, and what all sections of a config share.

Types are strict: a whole number may stand where a number is wanted, and nothing else is converted.
"""

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Auto = Literal["auto"]
Count = Annotated[int, Field(ge=1)]
Text = Annotated[str, Field(min_length=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Probability = Annotated[float, Field(ge=0, le=1)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]
Side = Annotated[int, Field(ge=32)]  # of an image that the network sees, in pixels


def _in_order(limits: tuple[float, float]) -> tuple[float, float]:
    low, high = limits
    if low > high:
        raise ValueError(f"the lower limit {low} is above the upper. Write [{high}, {low}].")
    return limits


def _unique(numbers: tuple[float, ...]) -> tuple[float, ...]:
    for number in numbers:
        if numbers.count(number) > 1:
            raise ValueError(f"{number} is in the list twice. Leave one out.")
    return numbers


# YAML has lists; tuples keep a Config immutable and hashable. strict=False lets the list become
# a tuple, the numbers inside stay strict.
FromList = Field(strict=False)
Triple = Annotated[tuple[float, float, float], FromList]
PositiveTriple = Annotated[tuple[Positive, Positive, Positive], FromList]
Share = Annotated[float, Field(gt=0, le=1)]
AreaLimits = Annotated[tuple[Share, Share], FromList, AfterValidator(_in_order)]
RatioLimits = Annotated[tuple[Positive, Positive], FromList, AfterValidator(_in_order)]
Decays = Annotated[tuple[BelowOne, ...], FromList, AfterValidator(_unique)]


class Section(BaseModel):
    """What all sections share: immutable, no unknown keys, no conversions, finite numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
