"""Scores of a reply against its reference: additive statistics per item, and the figure of their sums.

- answers: Exact match, contains and token F1
- chinese_numerals: Numbers in Chinese numerals
- json_texts: JSON validity and equality
- labels: Accuracy, precision, recall and F1 of labels
- number_text: Numbers in a text
- numbers: Numeric match of the last number or of the group of a pattern
- rouge: ROUGE-1, ROUGE-2 and ROUGE-L
- text: Normal form and words of a text, in every script
- tool_calls: Tool-call match
- totals: Figures of summed statistics
- translation: BLEU and chrF by sacrebleu
"""
