"""Loss, questions and replies of base and adapted model, and the verdict.

- chunked_loss: Cross entropy in chunks of logits
- choose_metrics: The metrics of a comparison, chosen by its data or by the recipe
- comparison: Comparison of base and adapted model
- comparison_report: The result of a comparison of base and adapted model
- format: A comparison as text for the terminal
- generations: Comparison of base, parent and child
- harness_figures: Figures of lm-evaluation-harness, side by side
- harness_model: lm-evaluation-harness on a loaded model
- harness_tasks: Tasks of lm-evaluation-harness, and files that must not run code
- intervals: Intervals and tests for figures of two models on the same items
- label_report: Figures of each label and the confusion matrix
- loss: Loss, perplexity and right top tokens at supervised positions
- loss_plot: The plot of training and validation loss
- measurement: What was measured of one model
- metric: A metric of base and adapted model, with its intervals and its verdict
- metrics: The metrics of a comparison, in one table
- overlap: Evaluation data that was trained on, and whether the verdict is withheld because of it
- own_metric: Metrics of the user, from a Python file
- prompt_control: Whether the replies of an adapted model depend on their prompts
- questions: Held-out questions with their accepted answers
- recital: Training replies that a model completes word for word
- reply_items: The held-out prompts that both models answer
- reply_kinds: The kinds of held-out replies and the metrics that fit each
- reply_scores: Statistics of the replies of a model
- training_replies: Training replies with their first tokens as a prompt
- verdict: The verdict of a comparison, in the same words wherever it is shown
- written_calls: Whether calls can be read from replies of a base
"""
