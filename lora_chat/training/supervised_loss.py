"""The LM head only where a label is: on the CPU, TRL's fused head scores every position."""

from typing import TYPE_CHECKING, Any

from trl import SFTTrainer

if TYPE_CHECKING:
    import torch

_MOST_POSITIONS = 2048
"""Logits of (positions, vocabulary) are held at once; beyond this TRL's chunked head takes over."""


class SupervisedSFTTrainer(SFTTrainer):
    """SFTTrainer that asks the model for logits of supervised positions alone, and counts them.

    The model's own forward makes the logits (`logits_to_keep`), so soft caps and scales stay its business.
    """

    supervised_tokens: "int | torch.Tensor" = 0
    """Trained so far, over all micro-batches."""

    def compute_loss(
        self,
        model: "torch.nn.Module",
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: "int | torch.Tensor | None" = None,
    ) -> Any:
        """Summed cross entropy over the supervised tokens of the step, divided by their number."""
        import torch

        next_ids = inputs["labels"][:, 1:]
        if self.model.training:
            self.supervised_tokens = self.supervised_tokens + (next_ids != -100).sum()
        keep = (next_ids[0] != -100).nonzero().squeeze(1)
        covered = next_ids.device.type == "cpu" and next_ids.shape[0] == 1 and keep.numel() <= _MOST_POSITIONS
        if return_outputs or not covered or self.aux_loss_enabled or self.label_smoother is not None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        rest = {key: value for key, value in inputs.items() if key != "labels"}
        logits = model(**rest, logits_to_keep=keep, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits[0].float(), next_ids[0, keep], reduction="sum")
        return loss / (keep.numel() if num_items_in_batch is None else num_items_in_batch)
