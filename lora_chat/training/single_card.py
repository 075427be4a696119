"""TRL's settings for one card, however many PyTorch sees."""

from trl import SFTConfig


class SingleCardConfig(SFTConfig):
    """SFTConfig that never wraps a model in DataParallel, which TRL refuses.

    The command line leaves only one card visible. Other programs may have started CUDA before, with several cards.
    """

    @property
    def n_gpu(self) -> int:
        """Return the number of cards in use: 1, or 0 on a CPU."""
        return min(1, int(super().n_gpu))
