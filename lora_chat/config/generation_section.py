"""The `evaluation.generation` section: how each next token of a reply is chosen."""

from typing import Annotated

from pydantic import Field, model_validator
from typing_extensions import Self

from lora_chat.config.base import Seed, StrictModel


class GenerationSection(StrictModel):
    """The choice of each next token of a reply. By default it is the most probable token (greedy).

    A reply depends on its prompt, these settings and its number in the list of prompts, not on the prompts beside it.
    """

    temperature: Annotated[float, Field(ge=0, le=100)] = 0.0
    """Temperature of sampling: 0 takes the most probable token, 1 samples from the model's own probabilities, and more
    makes replies more varied."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the probability that is sampled from: the most probable tokens that together reach it (nucleus
    sampling, arXiv 1904.09751). 1 allows every token."""
    seed: Seed = 0
    """Seed of sampling. The same seed gives the same replies on the same machine."""

    @model_validator(mode="after")
    def _check_nucleus(self) -> Self:
        """Raise ValueError for a share that greedy replies would ignore."""
        if self.is_greedy and self.top_p < 1:
            raise ValueError(
                f"top_p = {self.top_p:g} changes nothing at temperature 0, which takes the most probable token; set a "
                "temperature such as 0.8, or leave top_p out"
            )
        return self

    @property
    def is_greedy(self) -> bool:
        """Return whether each next token is the most probable one."""
        return self.temperature == 0


GREEDY = GenerationSection()
