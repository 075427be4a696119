"""Loss, questions and sample replies of base and adapted model.

- chunked_loss: Cross entropy in chunks of logits
- comparison: Comparison of base and adapted model
- format: A comparison as text for the terminal
- generations: Comparison of base, parent and child
- loss: Loss and perplexity on supervised tokens
- loss_plot: The plot of training and validation loss
- metrics: The metrics of a comparison, in one table
- questions: Held-out questions with their accepted answers
"""
