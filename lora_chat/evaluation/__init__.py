"""Loss, questions and samples of base and adapted model.

- chunked_loss: Cross entropy without the logits of a whole dialogue
- comparison: Base against adapted
- format: How results look
- loss: Loss and perplexity on supervised tokens
- loss_plot: The course of the loss as a picture
- questions: Held-out questions and the answers that count as right
"""
